"""`CLIPBackbone`, CLIP in Detectron2's BACKBONE_REGISTRY, and how any entry becomes the backbone of a model.

`build_clip` reads the configuration, `load_backbone` takes names. `model.load_clip` loads CLIP without Detectron2.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.checkpoints.locate import SUFFIXES
from clipself_seg.checkpoints.read import Checkpoint, read_checkpoint
from clipself_seg.clip import tower
from clipself_seg.clip.guest_backbone import GuestBackbone
from clipself_seg.clip.model import CLIP, find_clip
from clipself_seg.clip.tower import DENSE, TowerOptions, train_last_blocks
from clipself_seg.clip.training_free import refuse_training
from clipself_seg.clip.vision_language import VisionLanguageBackbone
from clipself_seg.config.declare import backbone_reads
from clipself_seg.config.keys import KEYS, default_config
from clipself_seg.config.weight_checks import refuse_addresses
from clipself_seg.errors import InputError, nearest

logger = logging.getLogger(__name__)
KEY = "MODEL.CLIP.WEIGHTS"
Entry = Callable[..., nn.Module]


@BACKBONE_REGISTRY.register()
class CLIPBackbone(CLIP, Backbone):
    """CLIP as a backbone of Detectron2: dense features of unit length, and raw features of any block.

    It works with every stock head (``MODEL.BACKBONE.NAME: CLIPBackbone``). Images must be normalised with CLIP's mean
    and std (``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD``) and padded to `size_divisibility`, as Detectron2's
    meta-architectures do. A subclass that overrides `forward`, `encode_image` or `encode_text` is read through it by
    every model.

    Attributes:
        out_features: names of the features that `forward` returns.
    """

    reads = tuple(name for name, key in KEYS.items() if key.clip_backbone)

    @configurable
    def __init__(
        self,
        *,
        out_features: Sequence[str] = (DENSE,),
        trainable_blocks: int | None = None,
        **parts: Any,
    ) -> None:
        """
        Args:
            out_features: names among ``dense``, ``block0``, ``block1``, ...
            trainable_blocks: number of last blocks of the image tower that train, and nothing else does; 0 freezes
                everything, -1 trains all blocks. Parameters that no feature needs stay frozen, since
                DistributedDataParallel expects a gradient of every other one. None leaves that to the caller.
            **parts: arguments of `CLIP`.

        Raises:
            InputError: blocks are to train, and the attention is one without training; or as `CLIP`.
        """
        super().__init__(**parts)
        self.out_features = self.visual.check_names(out_features)
        if trainable_blocks is not None:
            if trainable_blocks:
                refuse_training(self.visual.attention)
            self.requires_grad_(False)
            train_last_blocks(self.visual, trainable_blocks, self.out_features)

    def __init_subclass__(cls) -> None:
        """Makes models read a subclass through the public methods that it overrides, see `READ_THROUGH`."""
        super().__init_subclass__()
        for overridden, (called, through) in READ_THROUGH.items():
            if overridden in vars(cls) and called not in vars(cls):
                setattr(cls, called, through)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Reads ``MODEL.CLIP``; random weights if it names none.

        Raises:
            InputError: as `load_clip` and `ImageTower.configure`; the weights are an address, for a file may have
                named it.
        """
        keys = cfg.MODEL.CLIP
        refuse_addresses(cfg)
        options = configured_options(cfg)
        parts = find_clip(keys.NAME, keys.WEIGHTS or None, options, keys.DENSE_OVERRIDE)
        if cfg.MODEL.BACKBONE.NAME == cls.__name__:
            # Under a stock head, whose keys say what it does with pixels.
            _warn_of_other_pixels(cfg, parts)
        return {
            **parts,
            "out_features": keys.OUT_FEATURES,
            "trainable_blocks": keys.TRAINABLE_BLOCKS,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The features in `out_features` by name, of normalised images (B, 3, H, W); ``dense`` has unit length."""
        features = CLIP.features(self, images, self.out_features)
        if DENSE in features:
            features[DENSE] = F.normalize(features[DENSE], dim=1)
        return features

    def encode_image(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), unit length, of normalised images (B, 3, S, S)."""
        return F.normalize(CLIP.embed_images(self, images), dim=-1)

    @property
    def size_divisibility(self) -> int:
        """Number of pixels that the sides of the input must be multiples of."""
        return self.patch_size

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature that `forward` returns."""
        shapes = self.visual.feature_shapes()
        return {name: ShapeSpec(**shapes[name]._asdict()) for name in self.out_features}


def _features(self: CLIP, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    wanted, maps = self.visual.check_names(names), self(images)
    if lacks := [name for name in wanted if name not in maps]:
        raise InputError(
            f"{type(self).__name__} returns {', '.join(maps)}, and no {', '.join(lacks)}, which is to be read"
        )
    return {name: maps[name] for name in wanted}


def _embed_images(self: CLIP, images: Tensor) -> Tensor:
    return self.encode_image(images)


def _embed_texts(self: CLIP, texts: Sequence[str], **_: bool) -> Tensor:
    return self.encode_text(texts).to(self.device)


# Public method that a subclass may override -> the one that models call, and how it is read through the former.
READ_THROUGH: dict[str, tuple[str, Callable[..., object]]] = {
    "forward": ("features", _features),
    "encode_image": ("embed_images", _embed_images),
    "encode_text": ("embed_texts", _embed_texts),
}


def _warn_of_other_pixels(cfg: CfgNode, parts: Mapping[str, Any]) -> None:
    """Warns of pixels that CLIP was not trained with: Detectron2's defaults are BGR and ImageNet's mean."""
    kind = parts["architecture"].kind
    mean, std = parts.get("mean") or kind.mean, parts.get("std") or kind.std
    for key, values in (("MEAN", mean), ("STD", std)):
        given, wanted = cfg.MODEL[f"PIXEL_{key}"], tuple(round(255 * value, 3) for value in values)
        if any(abs(a - b) > 0.5 for a, b in zip(given, wanted)):
            logger.warning(
                "MODEL.PIXEL_%s is %s, this CLIP was trained with %s", key, tuple(given), wanted
            )
    if cfg.INPUT.FORMAT != "RGB":
        logger.warning("INPUT.FORMAT is %s, CLIP needs RGB", cfg.INPUT.FORMAT)


def configured_options(cfg: CfgNode) -> TowerOptions:
    """The options of an image tower that keys below ``MODEL.CLIP`` choose."""
    keys = cfg.MODEL.CLIP
    return TowerOptions(
        dense=DenseFeature(keys.DENSE, keys.DENSE_BLOCKS),
        attention=keys.ATTENTION,
        checkpointing=keys.CHECKPOINTING,
        compiled=keys.COMPILE,
    )


def build_clip(
    cfg: CfgNode, *, class_residual: bool = False, **keys: str
) -> VisionLanguageBackbone:
    """The backbone ``MODEL.CLIP.BACKBONE``, in evaluation mode; the model decides which parameters train.

    Args:
        cfg: configuration that the backbone is built from; `CLIPBackbone` reads ``MODEL.CLIP``.
        class_residual: as in `TowerOptions`, of a `CLIPBackbone`.
        **keys: values that replace those of keys below ``MODEL.CLIP``, such as BACKBONE and WEIGHTS for a second CLIP.

    Raises:
        InputError: no backbone is registered by this name, it lacks a member of `guest_backbone.Guest`, or it raises an
            error itself.
    """
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in keys.items():
        cfg.MODEL.CLIP[key] = value
    name = cfg.MODEL.CLIP.BACKBONE
    entry = find_entry(name)
    if not (isinstance(entry, type) and issubclass(entry, CLIPBackbone)):
        return _guest(cfg, name, entry)
    # A model says what trains. Of a subclass that is read through its forward, that gives all features.
    options = dataclasses.replace(configured_options(cfg), class_residual=class_residual)
    built = entry(cfg, ShapeSpec(channels=3), trainable_blocks=0, options=options)
    clip = cast(CLIPBackbone, built).eval()
    clip.out_features = [
        f for f in clip.visual.feature_shapes() if f not in (tower.QUERIES, tower.KEYS)
    ]
    return clip


def load_backbone(
    name: str, weights: str | os.PathLike[str] = "", **head: Any
) -> VisionLanguageBackbone:
    """Loads a CLIP as `load_clip` does, or the entry of BACKBONE_REGISTRY that has the name.

    Args:
        name: as for `load_clip`, or the name of an entry.
        weights: as for `load_clip`; of an entry what it reads as ``MODEL.CLIP.WEIGHTS``, or a file that was distilled
            from it.
        head: `out_features` and `trainable_blocks` of a CLIP under a head of Detectron2, see `CLIPBackbone`.

    Raises:
        InputError: as `load_clip` and `build_clip`.
    """
    if name not in dict(BACKBONE_REGISTRY):
        return cast(CLIPBackbone, CLIPBackbone(**head, **find_clip(name, weights)).eval())
    cfg = default_config()
    return build_clip(cfg, BACKBONE=name, WEIGHTS=os.fspath(weights))


def find_entry(name: str, key: str = "MODEL.CLIP.BACKBONE") -> Entry:
    """The class or function that BACKBONE_REGISTRY has under a name.

    Args:
        name: of the entry.
        key: that names it, for the message.

    Raises:
        InputError: there is none.
    """
    entries = dict(BACKBONE_REGISTRY)
    if name not in entries:
        raise InputError(
            f'{key} "{name}" is not in BACKBONE_REGISTRY: import the module that registers it, which '
            "--import does on a command line; "
            f"{nearest(name, entries)}"
        )
    return cast(Entry, entries[name])


def _guest(cfg: CfgNode, name: str, entry: Entry) -> GuestBackbone:
    """The guest of an entry, with the weights of a file that was distilled from it, where the key names one."""
    checkpoint = _distilled(name, cfg.MODEL.CLIP.WEIGHTS)
    if checkpoint is not None:
        cfg.MODEL.CLIP.WEIGHTS = checkpoint.start
        refuse_addresses(cfg)  # somebody else may have written the file
    elif cfg.MODEL.CLIP.WEIGHTS and not backbone_reads(name, KEY):
        raise InputError(
            f"{KEY} is {cfg.MODEL.CLIP.WEIGHTS}, and the backbone {name} loads its own weights: leave it empty, or "
            "give a file that was distilled from it"
        )
    guest = GuestBackbone(name, entry(cfg, ShapeSpec(channels=3)), cfg.MODEL.CLIP.WEIGHTS)
    if checkpoint is not None:
        guest.load_file(checkpoint)
    return guest


def _distilled(name: str, weights: str) -> Checkpoint | None:
    """The checkpoint of a file that `save_clip` wrote of an entry; None for any other weights.

    Raises:
        InputError: as `read_checkpoint`, of an entry that reads no files of its own.
    """
    if not weights.endswith(SUFFIXES):
        return None
    try:
        checkpoint = read_checkpoint(weights)
    except InputError:
        if backbone_reads(name, KEY):
            return None  # of a kind that the entry reads
        raise
    return checkpoint if checkpoint.model == name else None
