"""Heads on top of dense features and their losses: a folder for each method, and beside them what methods share.

Start with ``cat_seg/cost_aggregator.py`` for semantic segmentation, ``panoptic/clip_branches.py`` for panoptic
segmentation, ``fvit/roi_heads.py`` for detection and ``distillation_losses.py`` for CLIPSelf.
"""
