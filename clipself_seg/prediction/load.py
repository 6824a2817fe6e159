"""`load` makes the predictor of any model by its name, file or folder; `export` writes its CLIP as ONNX."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

from clipself_seg.checkpoints.choice import find_model
from clipself_seg.clip import DenseCLIP, load_clip
from clipself_seg.prediction.detection import DetectionPredictor
from clipself_seg.prediction.panoptic import PanopticPredictor
from clipself_seg.prediction.predictor import ImagePredictor, prediction_config
from clipself_seg.prediction.pretrained import load_pretrained
from clipself_seg.prediction.semantic import Predictor

PREDICTORS: dict[str, type[ImagePredictor[Any]]] = {
    "semantic": Predictor,
    "panoptic": PanopticPredictor,
    "detection": DetectionPredictor,
}


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
        A `Predictor` for semantic segmentation, a `PanopticPredictor` or a `DetectionPredictor`.

    Raises:
        InputError: the model is unknown, does another task, cannot be fetched or does not fit its configuration.
    """
    choice = find_model(model, task, config_file)
    given = [*choice.opts, *opts, *([] if device is None else ["MODEL.DEVICE", device])]
    kind = PREDICTORS.get(choice.task)
    if not choice.config_file:
        assert choice.weights is not None
        return load_pretrained(choice.weights, opts=given, kind=kind)
    cfg = prediction_config(choice.config_file, choice.weights, given, kind)
    build: Any = PREDICTORS[choice.task]  # by `configurable`
    return build(cfg)


def export(
    model: str | os.PathLike[str] | ImagePredictor[Any] | DenseCLIP,
    folder: str | os.PathLike[str],
) -> dict[str, dict[str, float]]:
    """Write ONNX files of a model's CLIP: its dense features, and its text embeddings.

    Args:
        model: a CLIP, a predictor, or what `load` takes.
        folder: new folder for the files.

    Returns:
        Differences of onnxruntime from torch, see `export_onnx`.

    Raises:
        InputError: as `load` and `export_onnx`.
    """
    from clipself_seg.clip.export import export_onnx

    if isinstance(model, str | os.PathLike):
        # Features of a CLIP alone are those of `load_clip`, and not what segmentation without training reads.
        one = find_model(model)
        loaded = load_clip(one.clip, one.weights) if one.clip else load(model, device="cpu")
    else:
        loaded = model
    return export_onnx(copy.deepcopy(clip_of(loaded)).cpu(), folder)


def clip_of(model: ImagePredictor[Any] | DenseCLIP) -> DenseCLIP:
    """The CLIP whose dense features a predictor reads, or the CLIP itself."""
    if isinstance(model, DenseCLIP):
        return model
    clip: DenseCLIP = getattr(model.model, "branch_clip", model.model.clip)
    return clip
