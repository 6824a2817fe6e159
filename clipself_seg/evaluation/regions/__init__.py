"""Accuracy of zero-shot region recognition by data set and input size; start with evaluation.py."""
