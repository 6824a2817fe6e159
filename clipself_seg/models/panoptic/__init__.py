"""Open-vocabulary panoptic segmentation as in ODISE, with CLIPSelf in its CLIP branch; start with model.py."""
