"""Reads and checks a configuration."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode

from clipself_seg import yaml_files
from clipself_seg.checkpoints.dense_feature import ANY
from clipself_seg.checkpoints.locate import SUFFIXES
from clipself_seg.checkpoints.read import feature_of_weights
from clipself_seg.checkpoints.zoo import SCHEME, zoo
from clipself_seg.config import declare
from clipself_seg.config.keys import default_config
from clipself_seg.config.panoptic_keys import OF_WEIGHTS
from clipself_seg.config.relations import MODEL, require_valid
from clipself_seg.config.semantic_keys import CAT_SEG_UNREAD, GUIDED, PUBLISHED
from clipself_seg.config.weight_checks import FETCHED, refuse_addresses
from clipself_seg.device import chosen_device, is_here
from clipself_seg.errors import InputError, nearest, shown
from clipself_seg.imports import OR_IMPORT, import_typed_modules

logger = logging.getLogger(__name__)

HEAD = "MODEL.SEM_SEG_HEAD.NAME"
NAME_AND_WEIGHTS = ("MODEL.CLIP.NAME", "MODEL.CLIP.WEIGHTS")
NAME_AND_WEIGHTS_OF_BRANCH = ("MODEL.CLIP_BRANCH.NAME", "MODEL.CLIP_BRANCH.WEIGHTS")
# Keys that have a word for nothing: CAT-Seg's own code freezes CLIP for None.
NONES = {"MODEL.SEM_SEG_HEAD.CLIP_FINETUNE": "none"}
# Key and value of a published file -> the name here: CAT-Seg's and ODISE's code register the value in the same process.
PUBLISHED_NAMES = {("MODEL.BACKBONE.NAME", "D2SwinTransformer"): "GuidanceSwin"}


class Sources:
    """The sources of a configuration's values: its files and the command line.

    Args:
        path: the file; None or "" for none.
        typed: keys and values of the command line.

    Raises:
        InputError: as `read_layers`.
    """

    def __init__(self, path: str | os.PathLike[str] | None, typed: yaml_files.Tree) -> None:
        self.path = path
        self.typed = typed
        self.layers = yaml_files.read_layers(path) if path else []
        self._written = [yaml_files.is_typed(layer) for layer in self.layers]

    def place(self, key: str) -> int:
        """Position of the source that sets a key or one of a section: its layer, behind all the command line; or -1."""
        typed = any(name == key or name.startswith(f"{key}.") for name in self.typed)
        return len(self.layers) if typed else yaml_files.setting_place(key, self.layers)

    def name(self, *keys: str) -> str:
        """Name of the source that sets the first of `keys` that any source sets, for messages."""
        place = next((self.place(key) for key in keys if self.place(key) >= 0), -1)
        if place < 0:
            return str(self.path or "the defaults")
        in_files = place < len(self.layers)
        return str(self.layers[place].path) if in_files else "the command line"

    def by_hand(self, key: str) -> bool:
        """True if a user set the key: on the command line, or in a file that is neither the package's nor a run's."""
        return key in self.typed or (place := self.place(key)) >= 0 and self._written[place]

    def recipe(self, key: str) -> Any:
        """Value of a key in the files that no user wrote, or its default."""
        layers = [layer for layer, written in zip(self.layers, self._written) if not written]
        values = dict(yaml_files.leaves(yaml_files.merge_layers(layers)))
        return values.get(key, declare.KEYS[key].default)

    def published(self, key: str) -> bool:
        """True if the file that sets a key is one of CAT-Seg's, by the head that it names."""
        if key in self.typed or (place := self.place(key)) < 0:
            return False
        return dict(yaml_files.leaves(self.layers[place].tree)).get(HEAD) == "CATSegHead"


def load_config(
    path: str | os.PathLike[str] | None, opts: Sequence[str] = (), *, trains: bool = False
) -> CfgNode:
    """Reads a YAML file with its ``_BASE_`` files, then ``KEY VALUE`` pairs, and checks the values.

    Args:
        path: the file; None or "" starts from the defaults.
        opts: keys and values in turn, as on a command line.
        trains: True if a training is to follow, which keeps its own settings where weights of the zoo were evaluated
            with others.

    Raises:
        InputError: missing or broken file, unknown key (with the nearest known one), a value of
            another type or outside its choices, a value that nothing follows.
    """
    import_typed_modules()
    cfg = default_config()
    defaults = dict(yaml_files.leaves(cfg))
    typed = yaml_files.option_pairs(opts)
    sources = Sources(path, typed)
    if output := _output_dir(sources.layers):
        cfg.OUTPUT_DIR = output
    tree = dict(yaml_files.leaves(yaml_files.merge_layers(sources.layers)))
    _merge(cfg, tree | typed, sources)
    if not trains:
        _take_settings_of_weights(cfg, sources)
    if cfg.SEED == -1:
        cfg.SEED = defaults["SEED"]  # any, in Detectron2's words
    _choose_exponents(cfg, sources)
    refuse_addresses(cfg, {key for key in FETCHED if key not in typed}, sources.name)
    _check_read(cfg, defaults, sources)
    require_valid(cfg, cfg.MODEL.META_ARCHITECTURE, sources.name, all_keys=True)
    _choose_device(cfg, sources)
    amp = cfg.SOLVER.AMP
    if cfg.MODEL.DEVICE in ("cpu", "mps") and amp.ENABLED and amp.DTYPE == "float16":
        amp.ENABLED = False
        why = "slow on a CPU" if cfg.MODEL.DEVICE == "cpu" else "not tried on mps"
        logger.warning("float16 is %s: SOLVER.AMP.ENABLED is False, all is float32", why)
    if not trains and amp.ENABLED and "SOLVER.AMP.ENABLED" in typed:
        logger.warning("SOLVER.AMP is of training alone, TEST.PRECISION of what follows")
    _check_precision(cfg, sources)
    cfg.freeze()
    return cfg


def values_and_defaults(cfg: CfgNode) -> dict[str, tuple[object, object]]:
    """Value and default of every key that may decide something, with lists for tuples, as in JSON."""
    defaults = dict(yaml_files.leaves(default_config()))
    return {
        key: (yaml_files.lists_for_tuples(value), yaml_files.lists_for_tuples(defaults.get(key)))
        for key, value in yaml_files.leaves(cfg)
        if declare.is_read(key, cfg.MODEL.META_ARCHITECTURE)
    }


def _merge(cfg: CfgNode, values: yaml_files.Tree, sources: Sources) -> None:
    known = dict(yaml_files.leaves(cfg))
    for key, value in values.items():
        if key in CAT_SEG_UNREAD:
            _check_unread(key, value, sources)
            continue
        if key not in known:
            hint = nearest(key, known) + (OR_IMPORT if key.startswith("MODEL.") else "")
            raise InputError(f'{sources.name(key)}: unknown key "{key}"; {hint}')
        if (key, str(value)) in PUBLISHED_NAMES:
            value = PUBLISHED_NAMES[key, str(value)]
        try:
            # YAML and the command line write whole numbers for float keys too.
            cfg.merge_from_list([key, float(value) if isinstance(known[key], float) else value])
        # The last two: brackets that are nested too deeply.
        except (ValueError, TypeError, OverflowError, RecursionError, MemoryError):
            wanted = type(known[key]).__name__
            hint = ", such as \"('a', 'b')\"" if wanted == "tuple" else ""
            raise InputError(
                f"{sources.name(key)}: {key} must be of type {wanted}{hint}, got {shown(value)}"
            ) from None
    _fill_nones(cfg, known, sources)


def _check_unread(key: str, value: object, sources: Sources) -> None:
    """Refuses another value of a key of CAT-Seg's files than theirs."""
    if isinstance(value, str):
        with contextlib.suppress(RecursionError, MemoryError):  # of brackets that are too deep
            value = CfgNode._decode_cfg_value(value)
    if yaml_files.lists_for_tuples(value) not in CAT_SEG_UNREAD[key]:
        passing = " or ".join(map(repr, CAT_SEG_UNREAD[key]))
        raise InputError(
            f"{sources.name(key)}: {key} {shown(value)} has no effect: nothing reads it, "
            f"and {passing} of CAT-Seg's files alone passes; leave it out"
        )


def _fill_nones(cfg: CfgNode, known: yaml_files.Tree, sources: Sources) -> None:
    """Refuses None, which Detectron2 takes for any type, where a key has no word for it."""
    for key, value in yaml_files.leaves(cfg):
        if value is None and known[key] is not None:
            if key not in NONES:
                raise InputError(
                    f"{sources.name(key)}: {key} must be of type {type(known[key]).__name__}, got None; "
                    f"leave it out for {known[key]!r}"
                )
            cfg.merge_from_list([key, NONES[key]])


def _output_dir(layers: Sequence[yaml_files.Layer]) -> str:
    """The folder of a run where nothing names one: output/ and the package's configuration that it stands on."""
    names = (yaml_files.shipped_name(layer.path) for layer in reversed(layers))
    return next((f"output/{name}" for name in names if name), "")


def _take_settings_of_weights(cfg: CfgNode, sources: Sources) -> None:
    """Sets what the published numbers of the weights were measured with, and what a CLIP was distilled for.

    What somebody wrote counts more, and so does what is set where the weights are, or after them.
    """
    entry = zoo().get(cfg.MODEL.WEIGHTS.removeprefix(SCHEME))
    settings = [("MODEL.WEIGHTS", *pair) for pair in entry.settings] if entry else []
    dense = feature_of_weights(cfg.MODEL.CLIP.WEIGHTS.removeprefix(SCHEME))
    if dense != ANY and not cfg.MODEL.CLIP.DENSE_OVERRIDE:
        words = dense.options().split()
        settings += [("MODEL.CLIP.WEIGHTS", *pair) for pair in zip(words[::2], words[1::2])]
    for weights, key, value in settings:
        if not sources.by_hand(key) and sources.place(key) < sources.place(weights):
            cfg.merge_from_list([key, value])
            logger.info("%s is %s, as the weights of %s were published", key, value, weights)


def _choose_device(cfg: CfgNode, sources: Sources) -> None:
    """Puts the device itself for "auto", and the CPU for one that is not here; the default, cuda, needs no word."""
    device = cfg.MODEL.DEVICE
    if not is_here(device):
        if sources.place("MODEL.DEVICE") >= 0:
            logger.warning("MODEL.DEVICE %s is not on this machine: the CPU computes", device)
        device = "cpu"
    cfg.MODEL.DEVICE = chosen_device(device)


def _choose_exponents(cfg: CfgNode, sources: Sources) -> None:
    """Lets an exponent that is set later than ``MODEL.FUSION.SOURCE`` win over that of the weights."""
    fusion, source = cfg.MODEL.FUSION, sources.place("MODEL.FUSION.SOURCE")
    # Weights of other models carry none, and a value that is none is refused later.
    if cfg.MODEL.META_ARCHITECTURE == "OpenPanoptic" and fusion.SOURCE in OF_WEIGHTS:
        left = tuple(
            name
            for name in OF_WEIGHTS[fusion.SOURCE]
            if sources.place(f"MODEL.FUSION.{name.upper()}") <= source
        )
        fusion.SOURCE = next(source for source, names in OF_WEIGHTS.items() if names == left)


def _check_read(cfg: CfgNode, defaults: yaml_files.Tree, sources: Sources) -> None:
    """Refuses the first key that somebody set, and that nothing reads; what comes with the package passes.

    Where nothing names a model, what one of them reads passes. With a backbone of somebody else's, what the package
    sets for `CLIPBackbone` goes back to its default, but name and weights of a CLIP become empty: whoever reads them
    by mistake gets no other CLIP. A warning names them.
    """
    reset, why = list[str](), ""
    values = dict(yaml_files.leaves(cfg))
    model = cfg.MODEL.META_ARCHITECTURE if sources.place(MODEL) >= 0 else None
    for key, value in values.items():
        other = _why_unread_by_backbone(key, cfg)
        nothing = "" if other and key in NAME_AND_WEIGHTS else defaults[key]
        passing = (yaml_files.lists_for_tuples(defaults[key]), nothing, PUBLISHED.get(key, nothing))
        plain = yaml_files.lists_for_tuples(value)
        # CAT-Seg's files name a guidance backbone also where CLIP's own blocks guide.
        guidance = (
            key in declare.KEYS and declare.KEYS[key].when == GUIDED and sources.published(key)
        )
        given = plain not in passing and sources.by_hand(key) and not guidance
        if given and (reason := other or declare.why_unread(key, values, model)):
            raise InputError(
                f"{sources.name(key)}: {key} {shown(value)} has no effect: {reason}; leave it out"
            )
        if other:
            if sources.place(key) >= 0 and plain != yaml_files.lists_for_tuples(nothing):
                reset.append(f"{key} {shown(value)}")
                why = other
            cfg.merge_from_list([key, nothing])
    if reset:
        logger.warning("reset, each since %s: %s", why, ", ".join(reset))


def _why_unread_by_backbone(key: str, cfg: CfgNode) -> str | None:
    """The reason why a key of `CLIPBackbone` has no effect: a foreign backbone, whose `reads` does not name it.

    The CLIP branch's own backbone reads what it is given as ``MODEL.CLIP``: name and weights of the branch, and all
    other keys as they are.
    """
    if key not in declare.KEYS or not declare.KEYS[key].clip_backbone:
        return None
    if declare.KEYS[key].weights and str(dict(yaml_files.leaves(cfg))[key]).endswith(SUFFIXES):
        return None  # it may be one that was distilled from the backbone
    of_clip = key.startswith("MODEL.CLIP.")
    own, branch = cfg.MODEL.CLIP.BACKBONE, cfg.MODEL.CLIP_BRANCH.BACKBONE
    where, backbone, name = "MODEL.CLIP.BACKBONE", own, key
    if branch and key in NAME_AND_WEIGHTS_OF_BRANCH:
        where, backbone = "MODEL.CLIP_BRANCH.BACKBONE", branch
        name = key.replace("CLIP_BRANCH", "CLIP")
    elif branch and of_clip and key not in NAME_AND_WEIGHTS and declare.backbone_reads(branch, key):
        return None
    if declare.backbone_reads(backbone, name):
        return None
    return (
        f"CLIPBackbone alone reads it, and {where} is {backbone}, whose attribute `reads` does not name "
        f"{'it' if name == key else name}"
    )


def _check_precision(cfg: CfgNode, sources: Sources) -> None:
    """Refuses float16 without a GPU."""
    device, precision = cfg.MODEL.DEVICE, cfg.TEST.PRECISION
    if precision == "float16" and not device.startswith("cuda"):
        raise InputError(
            f"{sources.name('TEST.PRECISION')}: TEST.PRECISION float16 needs a GPU, and MODEL.DEVICE is {device}: take "
            "bfloat16, or float32"
        )


def evaluation_precision(cfg: CfgNode) -> torch.dtype | None:
    """Reads ``TEST.PRECISION``; None is float32."""
    return None if cfg.TEST.PRECISION == "float32" else getattr(torch, cfg.TEST.PRECISION)


def precision_from_config(cfg: CfgNode) -> torch.dtype | None:
    """Reads ``SOLVER.AMP``, the precision of training; None is float32."""
    return getattr(torch, cfg.SOLVER.AMP.DTYPE) if cfg.SOLVER.AMP.ENABLED else None
