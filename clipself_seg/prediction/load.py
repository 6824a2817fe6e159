"""`load` makes the predictor of any model by its name, file or folder; `export` writes it, or its CLIP, as ONNX."""

from __future__ import annotations

import copy
import importlib
import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from clipself_seg.checkpoints.zoo import official
from clipself_seg.choice import OF_CLIP, ModelChoice, find_model
from clipself_seg.clip import VisionLanguageBackbone, load_clip
from clipself_seg.config import load_config
from clipself_seg.config.weights import fetch_addresses
from clipself_seg.data.vocabulary import Words
from clipself_seg.errors import InputError
from clipself_seg.models.build import architecture
from clipself_seg.prediction.onnx.output import NO_NAMES, check_request, find_exported, one_file
from clipself_seg.prediction.predictor import ImagePredictor
from clipself_seg.prediction.pretrained import fetched_folder, read_folder_config
from clipself_seg.prediction.task_predictors import PREDICTORS
from clipself_seg.yaml_files import leaves

logger = logging.getLogger(__name__)


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    task: str | None = None,
    config_file: str | os.PathLike[str] | None = None,
    opts: Sequence[str] = (),
    device: str | None = None,
) -> Any:
    """Load a model that predicts for images: ``model(image, "dog, grass, sky")``.

    Args:
        model: a name (`clipself_seg.list_models`), which is fetched once; a file of weights; the folder of a run or
            of `save_pretrained`; or "org/name" of the hub. None for the default of the task.
        task: "semantic", "panoptic" or "detection"; None for what the model does, or semantic.
        config_file: configuration, where the model does not bring one; then `model` may be an address, or
            "random" for random weights.
        opts: further keys of the configuration and their values in turn, such as MODEL.FUSION.ALPHA.
        device: "cpu" or "cuda"; None for a GPU if there is one.

    Returns:
        A `SemanticPredictor`, a `PanopticPredictor` or a `DetectionPredictor`.

    Raises:
        InputError: the model is unknown, does another task, cannot be fetched or does not fit its configuration.
    """
    choice = find_model(model, task, config_file)
    given = [*opts, *([] if device is None else ["MODEL.DEVICE", device])]
    if choice.config_file:
        build: Any = PREDICTORS[choice.task]  # by `configurable`
        return build(prediction_config(choice, given))
    folder = fetched_folder(str(choice.weights))
    cfg = read_folder_config(folder, given)
    own = architecture(cfg).task()
    if task not in (None, own):
        raise InputError(f"{model} does {own}: leave out the task, or say {own}")
    return PREDICTORS[own].from_folder(folder, cfg)


def prediction_config(choice: ModelChoice, opts: Sequence[str] = ()) -> CfgNode:
    """The configuration of a model that is trained already.

    Args:
        choice: its configuration and weights; "random" weights are none at all.
        opts: further keys and values in turn.

    Raises:
        InputError: an unknown configuration or key, or no weights where any are needed.
    """
    key, typed = choice.key, [*choice.opts, *opts]
    if choice.weights is not None:
        typed += [key, choice.weights]
    cfg = fetch_addresses(load_config(choice.config_file, typed))
    section = cfg.MODEL.CLIP if key == OF_CLIP else cfg.MODEL
    if section.WEIGHTS == "random":
        logger.warning("the weights are random: what is predicted means nothing")
        cfg = cfg.clone()
        cfg.defrost()
        (cfg.MODEL.CLIP if key == OF_CLIP else cfg.MODEL).WEIGHTS = ""
    elif not section.WEIGHTS and cfg.MODEL.MASK_GENERATOR.SOURCE != "masks":
        trained = "the model_final.pth of `clipself-seg train`"
        if key == OF_CLIP:
            trained = "open_clip's tag of a CLIP, or the clip_final.safetensors of a distillation"
        names = official(key, choice.config_file)
        raise InputError(
            f"{choice.config_file} names no {key}: give a trained checkpoint, such as {trained}"
            + (f", or an official one: {names}" if names else "")
        )
    return cfg


def export(
    model: str | os.PathLike[str] | ImagePredictor[Any] | VisionLanguageBackbone | None,
    path: str | os.PathLike[str],
    words: Words | None = None,
    *,
    stuff: Words | None = None,
    task: str | None = None,
    precision: str = "float32",
    text_tower: bool = False,
    config_file: str | os.PathLike[str] | None = None,
    opts: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Write ONNX: a model with its class names in one file, or the two towers of a CLIP in a folder.

    Args:
        model: a predictor, or what `load` takes; for a folder a CLIP, too.
        path: file that ends in .onnx, beside which a .json and, where needed, a .py say how to use it; or a new
            folder for the towers of the model's CLIP.
        words: class names of the file, as `set_vocabulary` takes them; None for those of the predictor.
        stuff: of panoptic segmentation, those of the class names that are stuff, see `panoptic_words`.
        task, config_file, opts: as for `load`.
        precision: of the file, "float32" or "float16"; inputs and outputs stay float32. TEST.PRECISION has no effect.
        text_tower: write the text tower beside the file, for class names that are given later.

    Returns:
        Differences of onnxruntime from torch, file name -> shapes of the inputs -> largest absolute difference as a
        fraction of the largest absolute value of that output: {"model.onnx": {"1x3x64x64": 1.2e-06}}.

    Raises:
        InputError: as `load`; the path is neither, or a file is there already; there are no class names; the model
            cannot be exported; or a difference is too large.
    """
    asked = {"words": words, "stuff": stuff, "precision": precision, "text_tower": text_tower}
    file = one_file(path, asked)
    loaded: Any
    if model is not None and not isinstance(model, str | os.PathLike):
        loaded = copy.deepcopy(model)
    else:
        one = find_exported(model, file, asked, task, config_file, opts)
        if one.clip and not (file or config_file):
            # Features of a CLIP alone are those of `load_clip`, and not what segmentation without training reads.
            loaded = load_clip(one.clip, one.weights)
        else:
            # The model's own may be float16, which needs a GPU.
            opts = ["TEST.PRECISION", "float32", *opts]
            loaded = load(model, task=task, config_file=config_file, opts=opts, device="cpu")
    if file is None:
        from clipself_seg.prediction.onnx.towers import export_onnx

        return export_onnx(clip_of(loaded).cpu(), path)
    if isinstance(loaded, VisionLanguageBackbone):
        raise InputError("a CLIP alone has no task: give a predictor, or the name of the CLIP")
    of_task, cfg = loaded.task, loaded.config
    check_request(of_task, dict(leaves(cfg or {})), asked)
    from clipself_seg.prediction.onnx.graph import write_model

    loaded.model.cpu()
    if words is not None:
        loaded.set_vocabulary(words, *([stuff] if of_task == "panoptic" else []))
    if loaded.given is None and not text_tower:
        raise InputError(NO_NAMES)
    if loaded.given is not None:
        loaded.model.classes = loaded.given.classes
    room = importlib.import_module(f"clipself_seg.prediction.onnx.{of_task}_graph")
    graph = room.graph_of(loaded, *([True] if text_tower else []))
    return write_model(graph, file, precision != "float32")


def clip_of(model: ImagePredictor[Any] | VisionLanguageBackbone) -> VisionLanguageBackbone:
    """The CLIP whose dense features a predictor reads, or the CLIP itself."""
    if isinstance(model, VisionLanguageBackbone):
        return model
    clip: VisionLanguageBackbone = getattr(model.model, "branch_clip", model.model.clip)
    return clip
