"""CLIP's image tower as a Detectron2 backbone: ``MODEL.BACKBONE.NAME: CLIPBackbone``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor
from torch.nn import functional as F

from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.clip.model import DenseCLIP, load_clip
from clipself_seg.clip.tower import DENSE, ImageTower, train_last_blocks
from clipself_seg.clip.training_free import refuse_training
from clipself_seg.config.weights import refuse_addresses

logger = logging.getLogger(__name__)


@BACKBONE_REGISTRY.register()
class CLIPBackbone(Backbone):
    """Dense features (``dense``, unit length per location) and raw features of any block (``block{i}``).

    It works with every stock head of Detectron2: each feature is (B, C, H / stride, W / stride), with C
    and stride as in `output_shape`. Images must be normalised with CLIP's mean and std
    (``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD``) and padded to `size_divisibility`, as Detectron2's
    meta-architectures do.
    """

    @configurable
    def __init__(
        self, *, tower: ImageTower, out_features: Sequence[str], trainable_blocks: int
    ) -> None:
        """
        Args:
            tower: image tower of `clipself_seg.clip`.
            out_features: names among ``dense``, ``block0``, ``block1``, ...
            trainable_blocks: number of last blocks that train; 0 freezes everything, -1 trains all
                blocks. Parameters that no feature needs stay frozen, since DistributedDataParallel
                expects a gradient of every other one.

        Raises:
            InputError: blocks are to train, and the attention is one without training.
        """
        super().__init__()
        if trainable_blocks:
            refuse_training(tower.attention)
        self.tower = tower
        self.out_features = tower.check_names(out_features)
        train_last_blocks(tower, trainable_blocks, self.out_features)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Reads ``MODEL.CLIP``."""
        clip = clip_from_config(cfg)
        _warn_of_other_pixels(cfg, clip)
        clip.visual.checkpointing = cfg.MODEL.CLIP.CHECKPOINTING
        return {
            "tower": clip.visual,
            "out_features": cfg.MODEL.CLIP.OUT_FEATURES,
            "trainable_blocks": cfg.MODEL.CLIP.TRAINABLE_BLOCKS,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The features in `out_features` by name, of normalised images (B, 3, H, W)."""
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
        """Number of pixels that the sides of the input must be multiples of."""
        return self.tower.patch_size


def _warn_of_other_pixels(cfg: CfgNode, clip: DenseCLIP) -> None:
    """Warns of pixels that CLIP was not trained with: Detectron2's defaults are BGR and ImageNet's mean."""
    wanted = {"PIXEL_MEAN": clip.mean, "PIXEL_STD": clip.std}
    for key, values in wanted.items():
        given = list(cfg.MODEL[key])
        needed = [round(255 * value, 3) for value in values]
        if any(abs(a - b) > 0.5 for a, b in zip(given, needed)):
            logger.warning("MODEL.%s is %s, this CLIP was trained with %s", key, given, needed)
    if cfg.INPUT.FORMAT != "RGB":
        logger.warning("INPUT.FORMAT is %s, CLIP needs RGB", cfg.INPUT.FORMAT)


def clip_from_config(cfg: CfgNode) -> DenseCLIP:
    """The CLIP of ``MODEL.CLIP.{NAME, WEIGHTS, DENSE, ATTENTION, COMPILE}``; random weights if it names none.

    Raises:
        InputError: as `load_clip`, `ImageTower.choose_attention` and `ImageTower.compile_blocks`; the weights are an
            address, for a file may have named it.
    """
    refuse_addresses(cfg)
    clip = load_as_configured(cfg, cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.WEIGHTS)
    clip.visual.choose_attention(cfg.MODEL.CLIP.ATTENTION)
    if cfg.MODEL.CLIP.COMPILE:
        clip.visual.compile_blocks()
    return clip


def load_as_configured(cfg: CfgNode, name: str, weights: str) -> DenseCLIP:
    """A CLIP whose dense feature is that of ``MODEL.CLIP.{DENSE, DENSE_BLOCKS, DENSE_OVERRIDE}``, and whose regions are
    those of ``REGIONS_SEE_CLASS_TOKEN``.

    Args:
        cfg: configuration; those keys are read.
        name: open_clip's model name.
        weights: as for `load_clip`; "" for random ones from torch's seed.

    Raises:
        InputError: as `load_clip` and `ImageTower.choose_regions`.
    """
    override = cfg.MODEL.CLIP.DENSE_OVERRIDE
    clip = load_clip(name, weights or None, dense=configured_feature(cfg), override=override)
    clip.visual.choose_regions(cfg.MODEL.CLIP.REGIONS_SEE_CLASS_TOKEN)
    return clip


def configured_feature(cfg: CfgNode) -> DenseFeature:
    """The dense feature that ``MODEL.CLIP.{DENSE, DENSE_BLOCKS}`` name."""
    return DenseFeature(cfg.MODEL.CLIP.DENSE, cfg.MODEL.CLIP.DENSE_BLOCKS)
