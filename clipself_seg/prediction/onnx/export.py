"""Exports a model with its class names as one file of ONNX, or the two towers of a CLIP as a folder."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipself_seg.choice import find_model
from clipself_seg.clip import VisionLanguageBackbone, load_clip
from clipself_seg.data.vocabulary import Words
from clipself_seg.errors import InputError
from clipself_seg.prediction.load import load
from clipself_seg.prediction.onnx import detection_graph, panoptic_graph, semantic_graph
from clipself_seg.prediction.onnx.graph import Export, require_free, write_model
from clipself_seg.prediction.onnx.towers import export_towers
from clipself_seg.prediction.predictor import ImagePredictor

SUFFIX = ".onnx"
# Endings of the files that belong to one export, behind its stem: its own, and those of its text tower.
ENDINGS = ".onnx .onnx.data .json .py _text.onnx _text.onnx.data _tokenizer.json _texts.py".split()
NO_NAMES = (
    'no class names: give words such as "dog, grass, sky"; or ask for the text tower, to give them to '
    "the file later; or name a folder, for the two towers of a CLIP"
)
# Task -> makes the graph of a predictor.
GRAPHS: dict[str, Callable[..., Export]] = {
    "semantic": semantic_graph.graph_of,
    "panoptic": panoptic_graph.graph_of,
    "detection": detection_graph.graph_of,
}


def export(
    model: str | os.PathLike[str] | ImagePredictor[Any] | VisionLanguageBackbone | None,
    path: str | os.PathLike[str],
    words: Words | None = None,
    *,
    stuff: Words | None = None,
    task: str | None = None,
    text_tower: bool = False,
    config_file: str | os.PathLike[str] | None = None,
    opts: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Writes ONNX: a model with its class names in one file, or the two towers of a CLIP in a folder.

    Args:
        model: a predictor, or what `load` takes; for a folder a CLIP, too.
        path: file that ends in .onnx, beside which a .json and a .py say how to use it; or a new folder for the towers
            of the model's CLIP.
        words: class names of the file, as `set_vocabulary` takes them; None for those of the predictor.
        stuff: of panoptic segmentation, those of the class names that are stuff, see `panoptic_words`.
        task, config_file, opts: as for `load`.
        text_tower: write the text tower beside the file, for class names that are given later.

    Returns:
        Differences of onnxruntime from torch, file name -> shapes of the inputs -> largest absolute difference as a
        fraction of the largest absolute value of that output: {"model.onnx": {"1x3x64x64": 1.2e-06}}.

    Raises:
        InputError: as `load`; a file is there already; there are no class names; the model
            cannot be exported; or a difference is too large.
    """
    file = _file(path, words is not None or stuff is not None or text_tower)
    if text_tower and words:
        raise InputError(
            "the text tower is for class names that are given to the file later: leave it or the words out"
        )
    loaded: Any
    if model is not None and not isinstance(model, str | os.PathLike):
        loaded = copy.deepcopy(model)
    else:
        choice = find_model(model, task, config_file)
        if file and choice.config_file and not (words or text_tower):
            raise InputError(NO_NAMES)
        if choice.clip and not (file or config_file):
            # Features of a CLIP alone are those of `load_clip`, and not what segmentation without training reads.
            if opts:
                raise InputError(
                    f"{model} is a CLIP alone, without a configuration: leave out --opts"
                )
            loaded = load_clip(choice.clip, choice.weights)
        else:
            # The model's own may be float16, which needs a GPU.
            opts = ["TEST.PRECISION", "float32", *opts]
            loaded = load(model, task=task, config_file=config_file, opts=opts, device="cpu")
    if file is None:
        return export_towers(_clip_of(loaded).cpu(), path)
    _set_names(loaded, words, stuff, text_tower)
    return write_model(GRAPHS[type(loaded.model).task()](loaded, text_tower), file)


def _file(path: str | os.PathLike[str], has_names: bool) -> Path | None:
    """The file of an export with class names, or None for a folder, which has none.

    Raises:
        InputError: a file that is there already, or class names for a folder.
    """
    file = Path(path)
    if file.suffix == SUFFIX:
        require_free([file.with_name(file.stem + end) for end in ENDINGS])
        return file
    if has_names:
        raise InputError(
            f"{path} is a folder, for the two towers of a CLIP, and class names belong to a model in one file: name a "
            f"file that ends in {SUFFIX}"
        )
    return None


def _set_names(
    predictor: ImagePredictor[Any], words: Words | None, stuff: Words | None, text_tower: bool
) -> None:
    """Gives a predictor the class names of the file, if they are not its own or are given later."""
    task, cfg = predictor.task, predictor.config
    if cfg is not None and cfg.TEST.AUG.ENABLED:
        raise InputError(
            "a file of ONNX has no mirrored image: set TEST.AUG.ENABLED to False, as by --opts"
        )
    if stuff is not None and (task != "panoptic" or words is None):
        raise InputError(
            "stuff is told from things in panoptic segmentation, with words: leave it out, or give words"
        )
    predictor.model.cpu()
    if words is not None:
        predictor.set_vocabulary(words, *([stuff] if task == "panoptic" else []))
    if text_tower:
        predictor.given = None  # class names are given later
    elif predictor.given is None:
        raise InputError(NO_NAMES)
    else:
        predictor.model.classes = predictor.given.classes


def _clip_of(model: ImagePredictor[Any] | VisionLanguageBackbone) -> VisionLanguageBackbone:
    """The CLIP whose dense features a predictor reads, or the CLIP itself."""
    if isinstance(model, VisionLanguageBackbone):
        return model
    clip: VisionLanguageBackbone = getattr(model.model, "branch_clip", model.model.clip)
    return clip
