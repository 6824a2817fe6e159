"""F-ViT's parts: resizers, feature pyramid, RPN, RoI heads, detections. Open `box_head.py` first."""
