"""Builds the backbone of a model: from the configuration (`build_clip`), and by names (`load_clip`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import cast

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn

from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.checkpoints.read import Checkpoint, read_checkpoint
from clipself_seg.clip.backbone import VisionLanguageBackbone
from clipself_seg.clip.guests import GuestBackbone
from clipself_seg.clip.model import CLIPBackbone, find_clip
from clipself_seg.clip.tower import DENSE, KEYS, QUERIES, TowerOptions
from clipself_seg.config.keys import default_config
from clipself_seg.config.schema import backbone_reads
from clipself_seg.config.weights import refuse_addresses
from clipself_seg.errors import InputError, nearest

KEY = "MODEL.CLIP.WEIGHTS"
Entry = Callable[..., nn.Module]


def build_clip(cfg: CfgNode, **keys: str) -> VisionLanguageBackbone:
    """The backbone ``MODEL.CLIP.BACKBONE``, in evaluation mode; the model decides which parameters train.

    Args:
        cfg: configuration that the backbone is built from; `CLIPBackbone` reads ``MODEL.CLIP``.
        **keys: values that replace those of keys below ``MODEL.CLIP``, such as BACKBONE and WEIGHTS for a second CLIP.

    Raises:
        InputError: no backbone is registered by this name, it lacks a member of `guests.Guest`, or it raises an error
            itself.
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
    clip = cast(CLIPBackbone, entry(cfg, ShapeSpec(channels=3), trainable_blocks=0)).eval()
    clip.out_features = [f for f in clip.visual.feature_shapes() if f not in (QUERIES, KEYS)]
    return clip


def load_clip(
    name: str,
    weights: str | os.PathLike[str] | None = "",
    *,
    dense: DenseFeature | None = None,
    override: bool = False,
    out_features: Sequence[str] = (DENSE,),
    trainable_blocks: int | None = None,
) -> CLIPBackbone:
    """Load a CLIP in evaluation mode, in float32 on the CPU.

    Args:
        name: name of weights in the zoo, such as ``eva02-vitb16``, or of shipped ones (``mini``, ``mini-clipself``,
            ``mini-clipself-proposals``, ``mini-eva``). With `weights` it is open_clip's model name, or ``ViT-Mini-8``.
        weights: path of a checkpoint in any published layout; an open_clip tag, a name of the zoo or an
            address, or ``hf-hub:org/name`` (downloaded); a tag of the shipped weights; or None for random weights
            from torch's current seed. Left out, those that `name` names.
        dense: what the dense features are; None for what the weights were distilled for, and token for a CLIP that
            was not distilled.
        override: read weights that were distilled for another dense feature all the same.
        out_features, trainable_blocks: of the backbone under a head of Detectron2, see `CLIPBackbone`.

    Raises:
        InputError: the name or tag is unknown, or the file is missing, damaged, unsafe, of another
            model or dense feature, or has numbers that are not finite.
    """
    options = None if dense is None else TowerOptions(dense)
    parts = find_clip(name, weights, options, override)
    backbone = {"out_features": out_features, "trainable_blocks": trainable_blocks}
    return CLIPBackbone(**parts, **backbone).eval()


def load_backbone(name: str, weights: str | os.PathLike[str] = "") -> VisionLanguageBackbone:
    """Load a CLIP as `load_clip` does, or the entry of BACKBONE_REGISTRY that has the name.

    Args:
        name: as for `load_clip`, or the name of an entry.
        weights: as for `load_clip`; of an entry what it reads as ``MODEL.CLIP.WEIGHTS``, or a file that was distilled
            from it.

    Raises:
        InputError: as `load_clip` and `build_clip`.
    """
    if name not in dict(BACKBONE_REGISTRY):
        return load_clip(name, weights)
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
    """The checkpoint of a file that `save_clip` wrote of an entry; None for any other weights."""
    if not os.path.isfile(weights):
        return None
    checkpoint = read_checkpoint(weights)
    return checkpoint if checkpoint.model == name else None
