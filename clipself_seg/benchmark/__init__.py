"""Speed and memory beside a plain formulation of the same mathematics, every gain a ratio in one run.

The plain formulations (`plain`) are written from the description of how such code is usually put
together; they give the same numbers and share the towers' layers, so that a gain
comes from the formulation alone.
"""
