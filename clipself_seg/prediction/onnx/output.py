"""What may be exported where: checks of what a user types, which import neither torch nor Detectron2."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from clipself_seg.checkpoints.choice import ModelChoice
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
GENERATOR = "MODEL.MASK_GENERATOR.SOURCE"


def one_file(output: str | os.PathLike[str], of_file: Sequence[str] = ()) -> Path | None:
    """The path of an export with class names, or None where the output is a folder, for the towers of a CLIP.

    Args:
        output: path that ends in .onnx, or a folder.
        of_file: what was asked for that only a file has, such as "words".

    Raises:
        InputError: another ending, a file that is there already, or something of a file alone for a folder.
    """
    path = Path(output)
    if path.suffix == SUFFIX:
        for taken in (path.with_name(path.stem + ending) for ending in ENDINGS):
            if taken.exists():
                raise InputError(f"{taken} is there already: give another name, or remove it")
        return path
    if path.suffix[1:].isalpha() and not path.is_dir():
        raise InputError(
            f"{output} ends in {path.suffix}: name a file that ends in {SUFFIX}, or a new folder for "
            "the two towers of a CLIP"
        )
    if of_file:
        raise InputError(
            f"{output} is a folder, for the two towers of a CLIP, and {of_file[0]} belongs to a "
            f"model in one file: name a file that ends in {SUFFIX}"
        )
    return None


def refuse_diffusion(source: object) -> None:
    """Refuse a model whose masks are made by Stable Diffusion.

    Args:
        source: value of MODEL.MASK_GENERATOR.SOURCE.

    Raises:
        InputError: it is "diffusion".
    """
    if source == "diffusion":
        raise InputError(
            f"{GENERATOR} is diffusion, and Stable Diffusion is not exported: take an FC-CLIP, such as "
            "--model fcclip-convnext-large"
        )


def check_request(choice: ModelChoice, opts: Sequence[str], words: bool, text_tower: bool) -> None:
    """Refuse a model or class names that one file cannot have.

    Args:
        choice: model, as `find_model` finds it.
        opts: further keys and values in turn.
        words: whether there are class names.
        text_tower: whether the text tower is exported, too, for class names that are given later.

    Raises:
        InputError: no class names, or both; or masks by Stable Diffusion.
    """
    if words and text_tower:
        raise InputError(
            "the text tower is for class names that are given to the file later: leave it or the words out"
        )
    if not choice.config_file:
        return  # a folder of save_pretrained or a repository of the hub, which may have class names
    if not words and not text_tower:
        raise InputError(NO_NAMES)
    values = dict(leaves(merge_layers(read_layers(choice.config_file))))
    refuse_diffusion((values | dict(zip(opts[::2], opts[1::2]))).get(GENERATOR))


def refuse_text_tower(asked: bool) -> None:
    """Refuse class names that are given later, for a task whose file has them inside.

    Raises:
        InputError: they were asked for.
    """
    if asked:
        raise InputError(
            "the text tower goes with semantic segmentation: files of detection and panoptic segmentation have their "
            "class names inside, so give words"
        )
