"""Reads and checks a configuration."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode

from clipself_seg.config.cat_seg import CAT_SEG_CHOICES
from clipself_seg.config.checks import CHECKS, RELATIONS
from clipself_seg.config.detection import DETECTION_CHOICES
from clipself_seg.config.keys import (
    CHOICES,
    CLIP_BACKBONE,
    OF_CLIP_BACKBONE,
    READOUTS,
    default_config,
)
from clipself_seg.config.panoptic import OF_WEIGHTS, PANOPTIC_CHOICES
from clipself_seg.config.reads import GUIDANCE, PUBLISHED, is_read, why_unread
from clipself_seg.config.retired import CONSTANTS, is_retired
from clipself_seg.config.shards import refuse_pipes
from clipself_seg.config.weights import WEIGHTS, refuse_addresses
from clipself_seg.config.yaml_files import (
    CONFIGS,
    Layer,
    is_typed,
)
from clipself_seg.config.yaml_files import leaves as flatten
from clipself_seg.config.yaml_files import (
    merge_layers,
    read_layers,
    setting_file,
    setting_place,
    shipped_name,
)
from clipself_seg.config.zero_shot import ZERO_SHOT_CHOICES
from clipself_seg.errors import InputError, nearest
from clipself_seg.imports import import_typed_modules

logger = logging.getLogger(__name__)

Source = Callable[..., str]
"""Keys -> what set the first of them: a file or the command line, for messages."""

ABSENT = object()
MODEL = "MODEL.META_ARCHITECTURE"
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
    import_typed_modules()
    cfg = default_config()
    defaults = dict(flatten(cfg))
    typed = option_pairs(opts)
    layers = read_layers(path) if path else []

    def source(*keys: str) -> str:
        """What sets the first of some keys that anything sets."""
        for key in keys:
            if key in typed:
                return "the command line"
            if file := setting_file(key, layers):
                return str(file)
        return str(path or "the defaults")

    if output := _output_dir(layers):
        cfg.OUTPUT_DIR = output
    _merge(cfg, merge_layers(layers), lambda key: str(setting_file(key, layers) or path))
    _merge(cfg, typed, lambda key: "the command line")
    if cfg.SEED == -1:
        cfg.SEED = defaults["SEED"]  # any, in Detectron2's words
    _choose_exponents(cfg, layers, typed)
    _leave_to_backbone(cfg, defaults, layers, typed)
    refuse_addresses(cfg, {key for key in WEIGHTS if key not in typed}, source)
    if "DATASETS.TRAIN" not in typed:
        refuse_pipes(cfg.DATASETS.TRAIN, lambda: source("DATASETS.TRAIN"))
    _check(cfg, source)
    _check_read(cfg, defaults, layers, typed)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    amp = cfg.SOLVER.AMP
    if cfg.MODEL.DEVICE == "cpu" and amp.ENABLED and amp.DTYPE == "float16":
        amp.ENABLED = False
        logger.warning("float16 is slow on a CPU: SOLVER.AMP.ENABLED is False, all is float32")
    cfg.freeze()
    return cfg


def values_and_defaults(cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
    """Value and default of every key that may decide something, and of those that became constants since.

    So what an earlier version wrote compares as it was. Lists for tuples, as in JSON.
    """
    defaults = dict(flatten(default_config()))
    return {key: (value, value) for key, value in CONSTANTS.items()} | {
        key: (_plain(value), _plain(defaults.get(key)))
        for key, value in flatten(cfg)
        if is_read(key, cfg.MODEL.META_ARCHITECTURE)
    }


def option_pairs(opts: Sequence[str]) -> dict[str, Any]:
    """Keys and values of the words of a command line.

    Raises:
        InputError: an odd number of words; names the last one.
    """
    if len(opts) % 2:
        raise InputError(f'give options as KEY VALUE pairs; "{opts[-1]}" has no partner')
    return dict(zip(opts[::2], opts[1::2]))


def _merge(cfg: CfgNode, tree: dict[str, Any], source: Source) -> None:
    known = dict(flatten(cfg))
    for key, value in flatten(tree):
        if is_retired(key, value, source(key)):
            continue
        if key not in known:
            raise InputError(f'{source(key)}: unknown key "{key}"; {nearest(key, known)}')
        try:
            # YAML and the command line write whole numbers for float keys too.
            cfg.merge_from_list([key, float(value) if isinstance(known[key], float) else value])
        # The last two: brackets that are nested too deeply.
        except (ValueError, TypeError, OverflowError, RecursionError, MemoryError):
            wanted = type(known[key]).__name__
            hint = ", such as \"('a', 'b')\"" if wanted == "tuple" else ""
            raise InputError(
                f"{source(key)}: {key} must be of type {wanted}{hint}, got {_shown(value)}"
            ) from None
    _fill_nones(cfg, known, source)


def _fill_nones(cfg: CfgNode, known: dict[str, Any], source: Source) -> None:
    """Refuse None, which Detectron2 takes for any type, where a key has no word for it."""
    for key, value in flatten(cfg):
        if value is None and known[key] is not None:
            if key not in NONES:
                raise InputError(
                    f"{source(key)}: {key} must be of type {type(known[key]).__name__}, got None; "
                    f"leave it out for {known[key]!r}"
                )
            cfg.merge_from_list([key, NONES[key]])


def _output_dir(layers: Sequence[Layer]) -> str:
    """The folder of a run where nothing names one: output/ and the package's configuration that it stands on."""
    names = (shipped_name(layer.path) for layer in reversed(layers))
    return next((f"output/{name}" for name in names if name), "")


def _choose_exponents(cfg: CfgNode, layers: Sequence[Layer], typed: dict[str, Any]) -> None:
    """Let an exponent that is set later than ``MODEL.FUSION.SOURCE`` win over that of the weights."""

    def place(key: str) -> int:
        return len(layers) if key in typed else setting_place(key, layers)

    section, fusion = "MODEL.FUSION.", cfg.MODEL.FUSION
    # Weights of other models carry none, and a value that is none is refused later.
    if cfg.MODEL.META_ARCHITECTURE == "OpenPanoptic" and fusion.SOURCE in OF_WEIGHTS:
        left = tuple(
            name
            for name in OF_WEIGHTS[fusion.SOURCE]
            if place(f"{section}{name.upper()}") <= place(f"{section}SOURCE")
        )
        fusion.SOURCE = next(source for source, names in OF_WEIGHTS.items() if names == left)


def _leave_to_backbone(
    cfg: CfgNode, defaults: dict[str, Any], layers: Sequence[Layer], typed: dict[str, Any]
) -> None:
    """With a backbone of somebody else's, refuses keys of `CLIPBackbone` that a user sets, and resets shipped values.

    Raises:
        InputError: names the first key.
    """
    backbone = cfg.MODEL.CLIP.BACKBONE
    if backbone == CLIP_BACKBONE:
        return
    users = [
        layer for layer in layers if not layer.path.resolve().is_relative_to(CONFIGS.resolve())
    ]
    for key, value in flatten(cfg):
        section, _, name = key.rpartition(".")
        of_clip = section == "MODEL.CLIP" and name != "BACKBONE"
        if not of_clip and key not in OF_CLIP_BACKBONE or _plain(value) == _plain(defaults[key]):
            continue
        file = setting_file(key, users)
        if key in typed or file:
            raise InputError(
                f"{'the command line' if key in typed else file}: {key} is read by {CLIP_BACKBONE} alone, and "
                f"MODEL.CLIP.BACKBONE is {backbone}: leave it out"
            )
        cfg.merge_from_list([key, defaults[key]])


def _check(cfg: CfgNode, source: Source) -> None:
    values = dict(flatten(cfg))
    all_choices = CHOICES | CAT_SEG_CHOICES | PANOPTIC_CHOICES | DETECTION_CHOICES
    all_choices |= ZERO_SHOT_CHOICES
    for key, choices in all_choices.items():
        if values[key] not in choices:
            hint = nearest(values[key], choices)
            raise InputError(f'{source(key)}: {key} cannot be "{values[key]}"; {hint}')
    key = "TEST.REGIONS.READ"
    for readout in values[key]:
        if readout not in READOUTS:
            hint = nearest(str(readout), READOUTS)
            raise InputError(f'{source(key)}: {key} cannot have "{_shown(readout, str)}"; {hint}')
    for key, wanted, holds in CHECKS:
        if not holds(values[key]):
            raise InputError(f"{source(key)}: {key} must be {wanted}, got {_shown(values[key])}")
    for key, other, wanted, agree in RELATIONS:
        if not agree(values[key], values[other]):
            raise InputError(
                f"{source(key, other)}: {key} must be {wanted}, got {_shown(values[key])} with "
                f"{other} {_shown(values[other])}"
            )


def _check_read(
    cfg: CfgNode, defaults: dict[str, Any], layers: Sequence[Layer], typed: Mapping[str, str]
) -> None:
    """Refuse the first key that somebody set, and that the model does not read; what comes with the package passes.

    Where nothing names a model, what one of them reads passes.
    """
    values = dict(flatten(cfg))
    named = MODEL in typed or setting_place(MODEL, layers) >= 0
    model = cfg.MODEL.META_ARCHITECTURE if named else None
    for key, value in values.items():
        place = setting_place(key, layers)
        by_hand = key in typed or (place >= 0 and is_typed(layers[place]))
        if not by_hand or _plain(value) in (_plain(defaults[key]), PUBLISHED.get(key, ABSENT)):
            continue
        if reason := why_unread(key, values, model):
            if key not in typed and _is_published(layers[place]) and key.startswith(GUIDANCE):
                continue
            source = "the command line" if key in typed else str(layers[place].path)
            raise InputError(
                f"{source}: {key} {_shown(value)} has no effect: {reason}; leave it out"
            )


def _is_published(layer: Layer) -> bool:
    """Whether a file is one of CAT-Seg's, which say so."""
    return dict(flatten(layer.tree)).get("MODEL.SEM_SEG_HEAD.NAME") == "CATSegHead"


def _plain(value: Any) -> Any:
    """A value with lists for tuples, also inside, where YAML has no tuples."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _shown(value: Any, text_of: Callable[[Any], str] = repr) -> str:
    """The beginning of what a value looks like."""
    text = text_of(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def precision_from_config(cfg: CfgNode) -> torch.dtype | None:
    """Reads ``SOLVER.AMP``."""
    return getattr(torch, cfg.SOLVER.AMP.DTYPE) if cfg.SOLVER.AMP.ENABLED else None
