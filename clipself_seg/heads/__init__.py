"""Heads on top of dense features and their losses, one folder for each method.

Start with ``cat_seg/cost_aggregator.py`` for semantic segmentation, ``panoptic/clip_branches.py`` for
panoptic segmentation and ``distillation/losses.py`` for CLIPSelf.
"""
