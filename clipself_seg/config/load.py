"""How a configuration is read and checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from fvcore.common.config import BASE_KEY

from clipself_seg.config.cat_seg import CAT_SEG_CHOICES
from clipself_seg.config.checks import CHECKS, RELATIONS
from clipself_seg.config.keys import CHOICES, READOUTS, add_clipself_seg_config
from clipself_seg.config.panoptic import PANOPTIC_CHOICES
from clipself_seg.config.unfollowed import RETIRED, unfollowed
from clipself_seg.errors import InputError, nearest

logger = logging.getLogger(__name__)

# Keys that have a word for nothing: CAT-Seg's own code freezes CLIP for None.
NONES = {"MODEL.SEM_SEG_HEAD.CLIP_FINETUNE": "none"}


def load_config(path: str | os.PathLike[str] | None, opts: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file with its ``_BASE_`` files, then ``KEY VALUE`` pairs, and check the values.

    Args:
        path: the file; None or "" starts from the defaults.
        opts: keys and values in turn, as on a command line.

    Raises:
        InputError: missing or broken file, unknown key (with the nearest known one), a value of
            another type or outside its choices, a value that nothing follows.
    """
    cfg = get_cfg()
    add_clipself_seg_config(cfg)
    defaults = dict(flatten(cfg))
    typed = _pairs(opts)
    if path:
        _merge(cfg, _read_yaml(Path(path)), str(path))
    _merge(cfg, typed, "the command line")
    if cfg.SEED == -1:
        cfg.SEED = defaults["SEED"]  # any, in Detectron2's words
    _check(cfg)
    if refused := _unfollowed_value(cfg, defaults):
        key, message = refused
        source = "the command line" if key in typed else _file_that_sets(key, Path(path or ""))
        raise InputError(f"{source or path}: {message}")
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    amp = cfg.SOLVER.AMP
    if cfg.MODEL.DEVICE == "cpu" and amp.ENABLED and amp.DTYPE == "float16":
        amp.ENABLED = False
        logger.warning("float16 is slow on a CPU: SOLVER.AMP.ENABLED is False, all is float32")
    cfg.freeze()
    return cfg


def flatten(cfg: CfgNode | dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full key and value of every leaf, in the order of the tree."""
    for key, value in cfg.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = [str(p) for p in sorted(path.parent.glob("*.yaml"))]
        raise InputError(
            f"no config file {path}" + (f"; {nearest(str(path), near)}" if near else "")
        )
    try:
        # Detectron2's own reader falls back to an unsafe YAML loader, which runs code.
        loaded = CfgNode.load_yaml_with_base(str(path), allow_unsafe=False)
    except FileNotFoundError as error:
        raise InputError(f"{path}: its _BASE_ {error.filename} is missing") from None
    except RecursionError:
        raise InputError(
            f"{path}: its _BASE_ leads back to it, or brackets in it are too deep; take them out"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a usable YAML file: {reason}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{path} holds no keys")
    return loaded


def _pairs(opts: Sequence[str]) -> dict[str, Any]:
    if len(opts) % 2:
        raise InputError(f'give options as KEY VALUE pairs; "{opts[-1]}" has no partner')
    return dict(zip(opts[::2], opts[1::2]))


def _merge(cfg: CfgNode, tree: dict[str, Any], source: str) -> None:
    known = dict(flatten(cfg))
    for key, value in flatten(tree):
        if key not in known and key in RETIRED and _plain(value) == RETIRED[key]:
            continue
        if key not in known:
            raise InputError(f'{source}: unknown key "{key}"; {nearest(key, known)}')
        try:
            # YAML and the command line write whole numbers for float keys too.
            cfg.merge_from_list([key, float(value) if isinstance(known[key], float) else value])
        except (ValueError, TypeError, OverflowError):
            wanted = type(known[key]).__name__
            hint = ", such as \"('a', 'b')\"" if wanted == "tuple" else ""
            raise InputError(
                f"{source}: {key} must be of type {wanted}{hint}, got {value!r}"
            ) from None
    _fill_nones(cfg, known, source)


def _fill_nones(cfg: CfgNode, known: dict[str, Any], source: str) -> None:
    """Refuse None, which Detectron2 takes for any type, where a key has no word for it."""
    for key, value in flatten(cfg):
        if value is None and known[key] is not None:
            if key not in NONES:
                raise InputError(
                    f"{source}: {key} must be of type {type(known[key]).__name__}, got None; "
                    f"leave it out for {known[key]!r}"
                )
            cfg.merge_from_list([key, NONES[key]])


def _check(cfg: CfgNode) -> None:
    values = dict(flatten(cfg))
    for key, choices in (CHOICES | CAT_SEG_CHOICES | PANOPTIC_CHOICES).items():
        if values[key] not in choices:
            raise InputError(f'{key} cannot be "{values[key]}"; {nearest(values[key], choices)}')
    for readout in cfg.TEST.REGIONS.READ:
        if readout not in READOUTS:
            raise InputError(
                f'TEST.REGIONS.READ cannot have "{readout}"; {nearest(str(readout), READOUTS)}'
            )
    for key, wanted, holds in CHECKS:
        if not holds(values[key]):
            raise InputError(f"{key} must be {wanted}, got {values[key]!r}")
    for key, other, wanted, agree in RELATIONS:
        if not agree(values[key], values[other]):
            raise InputError(
                f"{key} must be {wanted}, got {values[key]!r} with {other} {values[other]!r}"
            )


def _unfollowed_value(cfg: CfgNode, defaults: dict[str, Any]) -> tuple[str, str] | None:
    """The first key whose value would silently have no effect, and what to do about it."""
    for key, value in flatten(cfg):
        if entry := unfollowed(key, cfg.MODEL.META_ARCHITECTURE):
            passing = (defaults[key], *entry.published)
            if _plain(value) not in map(_plain, passing):
                wanted = " or ".join(map(repr, passing))
                return key, f"{key} must be {wanted}, got {value!r}: {entry.instead}; leave it out"
    return None


def _plain(value: Any) -> Any:
    """A value with lists for tuples, also inside, where YAML has no tuples."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _file_that_sets(key: str, path: Path) -> Path | None:
    """The file or the ``_BASE_`` of it whose value of a key counts; None for one on the web."""
    tree = yaml.safe_load(path.read_text())
    bases = tree.pop(BASE_KEY, [])
    if key in dict(flatten(tree)):
        return path
    for base in reversed([bases] if isinstance(bases, str) else bases):
        local = path.parent / os.path.expanduser(base)
        if "://" not in base and (setter := _file_that_sets(key, local)):
            return setter
    return None


def precision_from_config(cfg: CfgNode) -> torch.dtype | None:
    """Reads ``SOLVER.AMP``."""
    return getattr(torch, cfg.SOLVER.AMP.DTYPE) if cfg.SOLVER.AMP.ENABLED else None
