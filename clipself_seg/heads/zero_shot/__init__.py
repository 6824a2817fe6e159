"""Semantic segmentation without training: cosines of dense features and names, windows, and their mean."""
