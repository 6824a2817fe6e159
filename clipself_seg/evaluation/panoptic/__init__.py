"""Panoptic quality of models, for several fusions at once, and of files; start with evaluation.py."""
