"""F-ViT: open-vocabulary detection on a frozen CLIP ViT. Open `model.py` first."""

from clipself_seg.models.fvit.model import FViT

__all__ = ["FViT"]
