"""Mappers from a dataset record to the tensors of a sample, a file for each task.

Open the file of your task; `samples.py` has what they have in common.
"""

from clipself_seg import detectron2_needed  # noqa: F401  (says what to do where it is missing)
