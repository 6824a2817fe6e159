"""What predictors of all tasks share: configuration, kind of model, images as samples."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from clipself_seg.checkpoints.zoo import official
from clipself_seg.config import load_config
from clipself_seg.config.weights import fetch_addresses, require_weights
from clipself_seg.data.images import read_image
from clipself_seg.data.mappers.samples import chw
from clipself_seg.data.mappers.sem_seg import SemSegTestMapper
from clipself_seg.errors import InputError

logger = logging.getLogger(__name__)


def prediction_config(
    config_file: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    opts: Sequence[str] = (),
) -> CfgNode:
    """The configuration of a model that is trained already.

    Args:
        config_file: of the model.
        weights: a checkpoint, its name or its address, in place of the configured MODEL.WEIGHTS;
            "random" goes without.
        opts: further keys and values in turn.

    Raises:
        InputError: an unknown configuration or key, or no weights.
    """
    given = [] if weights is None else ["MODEL.WEIGHTS", os.fspath(weights)]
    cfg = fetch_addresses(load_config(config_file, [*opts, *given]))
    if not cfg.MODEL.WEIGHTS:
        names = official("MODEL.WEIGHTS", config_file or "")
        raise InputError(
            f"{config_file} names no MODEL.WEIGHTS: give a trained checkpoint, such as the "
            "model_final.pth of train_net.py" + (f", or an official one: {names}" if names else "")
        )
    if cfg.MODEL.WEIGHTS == "random":
        logger.warning("the weights are random: what is predicted means nothing")
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = ""
    require_weights(cfg)
    return cfg


def require_architecture(cfg: CfgNode, wanted: str, lack: str, folder: str) -> None:
    """Refuse the configuration of another kind of model.

    Args:
        cfg: of any model.
        wanted: MODEL.META_ARCHITECTURE that it has to have.
        lack: what another one does not do, such as "does not label pixels".
        folder: of configurations that do.

    Raises:
        InputError: it has another one.
    """
    given = cfg.MODEL.META_ARCHITECTURE
    if given != wanted:
        raise InputError(
            f"MODEL.META_ARCHITECTURE is {given}, which {lack}: take a configuration of {wanted}, "
            f"such as those below {folder}"
        )


def image_sample(
    image: np.ndarray | str | os.PathLike[str], mapper: SemSegTestMapper
) -> dict[str, Any]:
    """What a model is given of an image, as the mapper makes it of a file.

    Args:
        image: (H, W, 3) uint8 RGB, or the path of an image.
        mapper: resizes it, and says how large a file may be.

    Raises:
        InputError: the image cannot be read, or is not of that form.
    """
    image = rgb_image(image, mapper.max_pixels)
    resized = mapper.resize.get_transform(image).apply_image(image)
    return {"image": chw(resized), "height": image.shape[0], "width": image.shape[1]}


def rgb_image(image: np.ndarray | str | os.PathLike[str], max_pixels: int) -> np.ndarray:
    """The pixels of an image that is given, or read from its file.

    Args:
        image: (H, W, 3) uint8 RGB, or the path of an image.
        max_pixels: largest number of pixels of an image that is decoded.

    Raises:
        InputError: the image cannot be read, or is not of that form.
    """
    if not isinstance(image, np.ndarray):
        image = read_image(image, max_pixels=max_pixels)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"an image must be uint8 of shape (height, width, 3), got {image.dtype} of "
            f"{image.shape}"
        )
    return image
