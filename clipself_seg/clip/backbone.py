"""CLIP's image tower as a Detectron2 backbone: ``MODEL.BACKBONE.NAME: CLIPBackbone``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor
from torch.nn import functional as F

from clipself_seg.clip.model import load_clip
from clipself_seg.clip.tower import DENSE, ImageTower, train_last_blocks


@BACKBONE_REGISTRY.register()
class CLIPBackbone(Backbone):
    """Dense features (``dense``, unit length per location) and raw features of any block (``block{i}``).

    Works with every stock head: each feature is (B, C, H / stride, W / stride) as `output_shape` says.
    Images must be normalised with CLIP's mean and std (``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD``) and
    padded to `size_divisibility`, as Detectron2's meta-architectures do.
    """

    @configurable
    def __init__(
        self, *, tower: ImageTower, out_features: Sequence[str], trainable_blocks: int
    ) -> None:
        """
        Args:
            tower: an image tower of `clipself_seg.clip`.
            out_features: names out of ``dense``, ``block0``, ``block1``, ...
            trainable_blocks: the last K blocks train; 0 freezes everything, -1 trains all blocks.
        """
        super().__init__()
        self.tower = tower
        self.out_features = tower.check_names(out_features)
        train_last_blocks(tower, trainable_blocks, dense_only=set(out_features) == {DENSE})

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Reads ``MODEL.CLIP.{NAME, WEIGHTS, OUT_FEATURES, TRAINABLE_BLOCKS, CHECKPOINTING}``."""
        clip = load_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.WEIGHTS or None)
        clip.visual.checkpointing = cfg.MODEL.CLIP.CHECKPOINTING
        return {
            "tower": clip.visual,
            "out_features": cfg.MODEL.CLIP.OUT_FEATURES,
            "trainable_blocks": cfg.MODEL.CLIP.TRAINABLE_BLOCKS,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W) -> the named features."""
        features = self.tower.features(images, self.out_features)
        if DENSE in features:
            features[DENSE] = F.normalize(features[DENSE], dim=1)
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature."""
        shapes = self.tower.feature_shapes()
        return {
            name: ShapeSpec(channels=shapes[name][0], stride=shapes[name][1])
            for name in self.out_features
        }

    @property
    def size_divisibility(self) -> int:
        """Sides of the input must be multiples of this."""
        return self.tower.patch_size
