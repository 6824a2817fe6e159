"""A CLIP that labels pixels as it is, without a head and without training."""
