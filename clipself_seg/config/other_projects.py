"""Adds the project's keys to the configuration of another Detectron2 project, and keeps all of that one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, get_cfg
from yacs.config import CfgNode as AnyNode

from clipself_seg.config.declare import KEYS
from clipself_seg.config.keys import default_config, sections, set_key
from clipself_seg.errors import InputError
from clipself_seg.yaml_files import leaves

REMEDY = "rename yours, or call add_clip_backbone_config, which needs MODEL.CLIP alone"


def add_clipself_seg_config(cfg: CfgNode) -> None:
    """Adds the project's keys to `cfg`, and the defaults of Detectron2's keys that differ here.

    What is set in `cfg` stays, also where this project has another default: its models read it then. Of
    Detectron2's keys `MODEL.META_ARCHITECTURE`, `SOLVER.BASE_LR`, `SOLVER.WEIGHT_DECAY` and `SEED` get this
    project's defaults where they stand at Detectron2's, which counts as not set. A second call brings back what another
    project's function removed, such as a whole section that it made anew, and changes nothing else.

    Args:
        cfg: Detectron2's `get_cfg()`, with or without the keys of other projects; not frozen.

    Raises:
        InputError: a value stands where a section has to be, or the other way round, or a value is of
            another type. `cfg` is then as it was.
    """
    stock = dict(leaves(get_cfg()))
    own = {
        key: default
        for key, default in leaves(default_config())
        if key not in stock or stock[key] != default
    }
    there = _values(cfg, own, REMEDY)
    again = "MODEL.CLIPSELF.TARGET" in there
    for key, default in own.items():
        if key not in there or (key in stock and there[key] == stock[key] and not again):
            set_key(cfg, key, default)


def add_clip_backbone_config(cfg: CfgNode) -> None:
    """Adds to `cfg` the keys of `CLIPBackbone`, ``MODEL.CLIP``, and nothing else; keys that are there stay.

    Args:
        cfg: configuration of another Detectron2 project; not frozen.

    Raises:
        InputError: as `add_clipself_seg_config`.
    """
    own = {
        key.name: key.default
        for key in KEYS.values()
        if key.name.startswith("MODEL.CLIP.") and key.clip_backbone and key.of != ["CATSeg"]
    }
    there = _values(cfg, own, "rename yours")
    for key in own.keys() - there.keys():
        set_key(cfg, key, own[key])


def _values(cfg: CfgNode, own: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """Key -> value of a configuration in which none of our names stands for something else.

    Raises:
        InputError: one does.
    """
    there = {key: value for key, value in leaves(cfg) if not isinstance(value, AnyNode)}
    both = [key for key in own if key in there and not _same_type(there[key], own[key])]
    collisions = [f"{key} is {there[key]!r}, here a section" for key in sections(own) & {*there}]
    collisions += [f"{key} is a section, here {own[key]!r}" for key in sections(there) & {*own}]
    collisions += [f"{key} is {there[key]!r}, here {own[key]!r}" for key in both]
    if collisions:
        names = "; ".join(sorted(collisions))
        raise InputError(f"clipself_seg has keys of these names, too: {names}; {remedy}")
    return there


def _same_type(value: Any, default: Any) -> bool:
    """True if one may stand for the other, as in Detectron2's own merging; a whole number also for a float."""
    if value is None or default is None or type(value) is type(default):
        return True
    if isinstance(default, float):
        return type(value) is int
    return isinstance(value, list | tuple) and isinstance(default, list | tuple)
