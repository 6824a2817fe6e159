"""Checks of what a user wants to be exported, which import neither torch nor Detectron2."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipself_seg.choice import ModelChoice, find_model
from clipself_seg.errors import InputError
from clipself_seg.yaml_files import leaves, merge_layers, read_layers

SUFFIX = ".onnx"
# Endings of the files that belong to one export, behind its stem.
ENDINGS = [SUFFIX, ".onnx.data", ".json", ".py"]
ENDINGS += ["_text.onnx", "_text.onnx.data", "_tokenizer.json", "_texts.py"]
NO_NAMES = (
    'no class names: give words such as "dog, grass, sky"; or ask for the text tower, to give them to '
    "the file later; or name a folder, for the two towers of a CLIP"
)
FLOAT32 = "float32"
GENERATOR = "MODEL.MASK_GENERATOR.SOURCE"
FLIP = "TEST.AUG.ENABLED"


def one_file(output: str | os.PathLike[str], asked: Mapping[str, object]) -> Path | None:
    """The path of an export with class names, or None where the output is a folder, for the towers of a CLIP.

    Args:
        output: path that ends in .onnx, or a folder.
        asked: what only a file has, as for `check_request`.

    Raises:
        InputError: another ending, a file that is there already, or something of a file alone for a folder.
    """
    path = Path(output)
    if path.suffix == SUFFIX:
        taken = [path.with_name(path.stem + ending) for ending in ENDINGS]
        require_free([file for file in taken if file.exists()])
        return path
    if path.suffix[1:].isalpha() and not path.is_dir():
        raise InputError(
            f"{output} ends in {path.suffix}: name a file that ends in {SUFFIX}, or a new folder for "
            "the two towers of a CLIP"
        )
    if given := [name for name, value in asked.items() if value not in (None, False, FLOAT32)]:
        raise InputError(
            f"{output} is a folder, for the two towers of a CLIP, and {given[0].replace('_', ' ')} belongs to a "
            f"model in one file: name a file that ends in {SUFFIX}"
        )
    return None


def require_free(taken: Sequence[Path]) -> None:
    """Refuse an export whose place is taken by files or folders.

    Raises:
        InputError: names the first one.
    """
    if taken:
        raise InputError(f"{taken[0]} is there already: give another name, or remove it")


def check_request(task: str, values: Mapping[str, object], asked: Mapping[str, object]) -> None:
    """Refuse what the file of a task cannot have.

    Args:
        task: of the model; "" where it is not known yet.
        values: of the configuration, as far as they are known.
        asked: "words" and "stuff" or None, "precision" and "text_tower", see
            `prediction.load.export`.

    Raises:
        InputError: class names given now and later, or later for another task than semantic segmentation; stuff without
            panoptic segmentation or class names; another precision than float32 and float16; panoptic segmentation in
            float16, or with masks by Stable Diffusion; a mirrored image.
    """
    if problem := _problem(task, values, asked):
        raise InputError(problem)


def _problem(task: str, values: Mapping[str, object], asked: Mapping[str, object]) -> str:
    """What `check_request` says; empty if there is nothing to say."""
    precision = asked["precision"]
    if precision not in (FLOAT32, "float16"):
        return (
            f"a file of ONNX is in float32 or float16, not in {precision}, in which onnxruntime computes nothing on a "
            "CPU: TensorRT and OpenVINO compute a file of float32 in bfloat16"
        )
    if asked["text_tower"] and asked["words"]:
        return "the text tower is for class names that are given to the file later: leave it or the words out"
    if asked["text_tower"] and task not in ("", "semantic"):
        return (
            "the text tower goes with semantic segmentation: files of detection and panoptic segmentation have their "
            "class names inside, so give words"
        )
    if asked["stuff"] is not None and (task not in ("", "panoptic") or asked["words"] is None):
        return "stuff is told from things in panoptic segmentation, with words: leave it out, or give words"
    if precision != FLOAT32 and task == "panoptic":
        return "float16 does not hold the sums over an image's cells in panoptic segmentation: take float32"
    if str(values.get(FLIP)) == "True":  # of opts it is text
        return f"a file of ONNX has no mirrored image: set {FLIP} to False"
    if values.get(GENERATOR) == "diffusion":
        return (
            f"{GENERATOR} is diffusion, and Stable Diffusion is not exported: take an FC-CLIP, such as "
            "--model fcclip-convnext-large"
        )
    return ""


def find_exported(
    model: str | os.PathLike[str] | None,
    file: Path | None,
    asked: Mapping[str, object],
    task: str | None = None,
    config_file: str | os.PathLike[str] | None = None,
    opts: Sequence[str] = (),
) -> ModelChoice:
    """Find a model, and refuse what its file or folder cannot have, before anything is loaded.

    Args:
        model, task, config_file: as for `find_model`.
        file: of a model with class names; None for the towers of a CLIP.
        asked: as for `check_request`.
        opts: further keys and values in turn.

    Raises:
        InputError: as these two; no class names; keys and values for the towers of a CLIP alone.
    """
    choice = find_model(model, task, config_file)
    if not file:
        if choice.clip and opts and not config_file:
            raise InputError(f"{model} is a CLIP alone, without a configuration: leave out --opts")
        return choice
    # A folder of save_pretrained or a repository of the hub may have class names, and says what it is when it is read.
    layers = read_layers(choice.config_file) if choice.config_file else []
    values = dict(leaves(merge_layers(layers))) | dict(zip(opts[::2], opts[1::2]))
    check_request(choice.task, values, asked)
    if choice.config_file and not (asked["words"] or asked["text_tower"]):
        raise InputError(NO_NAMES)
    return choice
