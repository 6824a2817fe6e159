"""Drawings of label maps, segments and dense features over images.

Open `overlays.py` first: it tints an image by a label map, with names and a legend.
"""
