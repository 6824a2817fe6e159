"""Evaluates models on data sets and turns outputs into numbers and tables.

Start with evaluation_base.py.
"""

from clipself_seg import detectron2_needed  # noqa: F401  (says what to do where it is missing)
