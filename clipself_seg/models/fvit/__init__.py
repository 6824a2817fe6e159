"""F-ViT: open-vocabulary detection on a frozen CLIP ViT. Open `model.py` first."""

from clipself_seg.models.fvit.model import FViT
from clipself_seg.models.fvit.stock_parts import FViTBackbone, FViTROIHeads, FViTRPN

__all__ = ["FViT", "FViTBackbone", "FViTROIHeads", "FViTRPN"]
