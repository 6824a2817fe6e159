"""Panoptic segmentation from a mask generator and CLIP: masks, class scores, losses and the merge.

Start with ``clip_branches.py`` (class scores of masks), then ``panoptic_merge.py`` (from scores to
segments); ``mask_generator/`` and ``diffusion_features/`` make the masks.
"""
