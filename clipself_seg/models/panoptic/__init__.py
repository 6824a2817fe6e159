"""Open-vocabulary panoptic segmentation as in ODISE, with CLIPSelf in its CLIP branch; start with open_panoptic.py."""
