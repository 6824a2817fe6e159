"""The Swin transformer that guides the large model of CAT-Seg's first version."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor

FIRST = 2  # stage 0 is res2


@BACKBONE_REGISTRY.register()
class GuidanceSwin(SwinTransformer):
    """Detectron2's Swin with features named res2, res3, ..., and its first norm frozen."""

    @configurable
    def __init__(self, **sizes: object) -> None:
        """
        Args:
            **sizes: arguments of Detectron2's `SwinTransformer`.
        """
        super().__init__(**sizes)
        if "res2" in self.output_shape():
            self.norm0.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Reads ``MODEL.SWIN``."""
        swin = cfg.MODEL.SWIN
        return {
            "in_chans": input_shape.channels,
            "embed_dim": swin.EMBED_DIM,
            "depths": swin.DEPTHS,
            "num_heads": swin.NUM_HEADS,
            "window_size": swin.WINDOW_SIZE,
            "drop_path_rate": 0.3,
            "out_indices": tuple(int(name[3:]) - FIRST for name in swin.OUT_FEATURES),
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features of normalised images (B, 3, H, W): {"res2": (B, C, H / 4, W / 4), "res3": ...}."""
        return {f"res{int(k[1:]) + FIRST}": v for k, v in super().forward(images).items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature, by its name."""
        return {f"res{int(k[1:]) + FIRST}": v for k, v in super().output_shape().items()}
