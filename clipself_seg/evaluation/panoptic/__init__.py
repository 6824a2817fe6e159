"""Panoptic quality of models, for several fusions at once; start with panoptic_evaluation.py."""
