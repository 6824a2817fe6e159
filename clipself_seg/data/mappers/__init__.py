"""Mappers from a dataset record to the tensors of a sample, a file for each task.

Open the file of your task; `samples.py` has what they have in common.
"""
