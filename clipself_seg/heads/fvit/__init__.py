"""F-ViT behind its tower: pyramid, region proposals, RoI heads, masks. Open `roi_heads.py` first."""
