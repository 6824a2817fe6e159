"""The configuration in a folder of `save_pretrained`: writing it, and reading it from an untrusted folder.

It names no file but those beside it, nothing that is fetched and nothing above it, and no number in it makes more
than the weights beside it are: what it says is checked before anything is built.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from fvcore.common.config import BASE_KEY

from clipself_seg.config.keys import default_config
from clipself_seg.config.load import flatten, load_config, values_and_defaults
from clipself_seg.config.weights import WEIGHTS, fetch_addresses, weights_key
from clipself_seg.config.yaml_files import read_tree
from clipself_seg.errors import InputError, nearest, shown

CONFIG = "config.yaml"
MODEL = "model.safetensors"
CLIP = "clip.safetensors"
BRANCH_CLIP = "clip_branch.safetensors"
VOCABULARY = "vocabulary.json"
TRAINED = "trained.json"
CARD = "README.md"
# What a folder has; the first has to be there, and `MODEL` but of a model that has no weights but its CLIP's.
FILES = (CONFIG, MODEL, CLIP, BRANCH_CLIP, VOCABULARY, TRAINED, CARD)
# Key -> the only file of the folder that it may name.
FILE_KEYS = {
    "MODEL.WEIGHTS": MODEL,
    "MODEL.CLIP.WEIGHTS": CLIP,
    "MODEL.CLIP_BRANCH.WEIGHTS": BRANCH_CLIP,
    "TEST.TRAIN_VOCABULARY": TRAINED,
}
# What decides a prediction: the rest is training's, the machine's, or a file of its own.
SECTIONS = ("MODEL.", "INPUT.", "TEST.", "SOLVER.AMP.")
LEFT_OUT = {
    *WEIGHTS,
    "MODEL.DEVICE",
    "MODEL.MASK_GENERATOR.OUTPUTS",
    "MODEL.ZERO_SHOT.MASKS",
    "INPUT.MAX_PIXELS",
}
LEFT_OUT |= {"TEST.NUMBERS.SIMILARITY", "TEST.PANOPTIC.LABEL_FILES"}
LEFT_OUT |= {f"MODEL.SEM_SEG_HEAD.{name}_CLASS_JSON" for name in ("TRAIN", "TEST")}
LEFT_OUT -= FILE_KEYS.keys()
# Decides no prediction, and is allowed since folders of earlier versions have it.
NOT_WRITTEN = {*LEFT_OUT, "TEST.EVAL_PERIOD"}
# MODEL.META_ARCHITECTURE -> module below `clipself_seg.prediction`, class of its predictor, and option of predict.
PREDICTORS = {
    "CATSeg": ("semantic", "Predictor", "--semantic"),
    "ZeroShotSegmenter": ("semantic", "Predictor", "--semantic"),
    "OpenPanoptic": ("panoptic", "PanopticPredictor", "--panoptic"),
    "FViT": ("detection", "DetectionPredictor", "--boxes"),
}
# Far above the sizes and counts of any published model; those that are the default may be larger.
LARGEST_NUMBER = 4096
MOST_BYTES = 1 << 24  # of a file of text


def write_folder_config(cfg: CfgNode, path: Path, clip_name: str, files: Mapping[str, str]) -> None:
    """Write the values that decide a prediction, all of them, so that no later default changes it.

    Args:
        cfg: of the predictor.
        path: file to write.
        clip_name: name of the model's CLIP.
        files: those of `FILE_KEYS` that the folder has, with their file.
    """
    values = {
        key: value
        for key, (value, _) in values_and_defaults(cfg).items()
        if key.startswith(SECTIONS) and key not in NOT_WRITTEN
    }
    own = {"MODEL.CLIP.NAME": clip_name, "MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED": ""}
    values |= dict.fromkeys(FILE_KEYS, "") | own | dict(files)
    path.write_text(yaml.safe_dump(_tree(values), sort_keys=True), encoding="utf-8")


def read_folder_config(folder: Path, opts: Sequence[str] = ()) -> CfgNode:
    """The configuration of a folder, with the paths of its files.

    Args:
        folder: of `save_pretrained`, or of anybody.
        opts: further keys and values in turn, which somebody typed: they may be anything.

    Raises:
        InputError: a file is missing, or a key is not one that a folder may set, or not to this value.
    """
    path = folder / CONFIG
    require_text(path)
    tree = read_tree(path)
    if BASE_KEY in tree:
        raise InputError(
            f"{path}: a folder's configuration stands on no other: take {BASE_KEY} out"
        )
    values = dict(flatten(tree))
    _check(values, path)
    paths = list[str]()
    for key, file in FILE_KEYS.items():
        if values.get(key):
            if not (folder / file).is_file():
                raise InputError(f"{path}: {key} is {file}, which is not beside it: fetch it too")
            if file.endswith(".json"):
                require_text(folder / file)
            paths += [key, str(folder / file)]
    kind = str(values["MODEL.META_ARCHITECTURE"])
    for key in dict.fromkeys((weights_key(kind), "MODEL.CLIP.WEIGHTS")):
        if not values.get(key):
            raise InputError(f"{path} has no {key}: save_pretrained writes {FILE_KEYS[key]}")
    return fetch_addresses(load_config(path, [*paths, *opts]))


def require_text(path: Path) -> None:
    """Refuse a file of text that is missing, or larger than any that `save_pretrained` writes.

    Raises:
        InputError: names it.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: give a folder that save_pretrained wrote")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise InputError(f"{path} has {size} bytes, {MOST_BYTES} at most are read: give another")


def _check(values: Mapping[str, Any], path: Path) -> None:
    defaults = dict(flatten(default_config()))
    for key, value in values.items():
        if key not in defaults:
            raise InputError(f'{path}: unknown key "{key}"; {nearest(key, defaults)}')
        if not key.startswith(SECTIONS) or key in LEFT_OUT:
            raise InputError(f"{path}: {key} is no key of a folder of save_pretrained: take it out")
        if key in FILE_KEYS:
            if value not in ("", FILE_KEYS[key]):
                raise InputError(
                    f"{path}: {key} is {shown(value)}: a folder names nothing but its own {FILE_KEYS[key]}"
                )
        elif value != _plain(defaults[key]):
            _check_value(key, value, path)
    kind = values.get("MODEL.META_ARCHITECTURE")
    if kind not in [*PREDICTORS]:
        raise InputError(
            f"{path}: MODEL.META_ARCHITECTURE is {shown(kind)}, and one of {', '.join(PREDICTORS)} predicts"
        )


def _check_value(key: str, value: Any, path: Path) -> None:
    """Refuse what may be a path or an address, and numbers that no model has."""
    for item in _leaves(value):
        if isinstance(item, str) and any(mark in item for mark in "/\\:~"):
            raise InputError(
                f"{path}: {key} is {shown(item)}, which may lead out of the folder: give a plain name"
            )
        if isinstance(item, int | float) and not -LARGEST_NUMBER <= item <= LARGEST_NUMBER:
            raise InputError(
                f"{path}: {key} is {shown(item)}, and {LARGEST_NUMBER} is the largest number of a folder"
            )


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, str):
        # Detectron2 reads lists and numbers out of text; text that is none of them stays.
        with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            value = ast.literal_eval(value)
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _tree(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested sections of full keys."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree
