"""Measures speed and memory of this project's code beside a plain formulation of the same mathematics.

Open `workloads.py` first: it lists what is measured. The plain formulations (`plain*.py`) are written as such code is
usually put together; they give the same numbers and use the towers' layers, so that a gain comes from the formulation
alone.
"""
