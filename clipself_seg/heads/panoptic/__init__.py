"""Panoptic segmentation from a mask generator and CLIP: masks, class scores, losses and the merge.

Start with ``generator.py`` (from feature maps to masks), then ``clip_branches.py`` (class scores of masks) and
``panoptic_merge.py`` (from scores to segments).
"""
