"""`load` makes the predictor of any model by its name, file or folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from clipself_seg.checkpoints.needs import fetch_needed
from clipself_seg.checkpoints.zoo import official
from clipself_seg.choice import CLIP_KEY, ModelChoice, find_model
from clipself_seg.config import load_config
from clipself_seg.config.weight_checks import fetch_addresses
from clipself_seg.errors import InputError
from clipself_seg.models.build import architecture
from clipself_seg.prediction.pretrained import from_folder
from clipself_seg.prediction.task_predictors import PREDICTORS, BoxesOfSegments

logger = logging.getLogger(__name__)


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    task: str | None = None,
    config_file: str | os.PathLike[str] | None = None,
    opts: Sequence[str] = (),
    device: str | None = None,
) -> Any:
    """Loads a model that predicts for images: ``model(image, "dog, grass, sky")``.

    Args:
        model: a name (`clipself_seg.list_models`), which is fetched once; a file of weights; the folder of a run or
            of `save_pretrained`; or "org/name" of the hub. None for the default of the task.
        task: "semantic", "panoptic" or "detection"; None for what the model does, or semantic.
        config_file: configuration, where the model does not bring one; then `model` may be an address, or
            "random" for random weights.
        opts: further keys of the configuration and their values in turn, such as MODEL.FUSION.ALPHA.
        device: "cpu" or "cuda"; None for a GPU if there is one.

    Returns:
        A `SemanticPredictor`, a `PanopticPredictor` or a `DetectionPredictor`; of a CLIP alone for detection
        `BoxesOfSegments`.

    Raises:
        InputError: the model is unknown, does another task, cannot be fetched or does not fit its configuration.
    """
    choice = find_model(model, task, config_file)
    given = [*opts, *([] if device is None else ["MODEL.DEVICE", device])]
    build: Any = PREDICTORS[choice.task]  # by `configurable`
    if not choice.config_file:
        return from_folder(build, Path(str(choice.weights)), given)
    fetch_needed(choice.values(given))
    cfg = prediction_config(choice, given)
    if choice.task == "detection" and architecture(cfg).task() == "panoptic":
        build = BoxesOfSegments
    return build(cfg)


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
    weights = cfg.MODEL.CLIP.WEIGHTS if key == CLIP_KEY else cfg.MODEL.WEIGHTS
    if weights == "random":
        logger.warning("the weights are random: what is predicted means nothing")
        cfg = cfg.clone()
        cfg.defrost()
        cfg.merge_from_list([key, ""])
    elif not weights and cfg.MODEL.MASK_GENERATOR.SOURCE != "masks":
        names = official(key, choice.config_file) or "(none is known for it)"
        raise InputError(
            f"{choice.config_file} names no {key}: give a trained checkpoint, or an official one: {names}"
        )
    return cfg
