"""Semantic segmentation with a CLIP alone, without a head and without training; start with model.py."""
