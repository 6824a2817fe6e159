"""What predictors of all tasks share: configuration, kind of model, images as samples."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from clipself_seg.checkpoints.download import fetch_bytes, is_address
from clipself_seg.checkpoints.zoo import official
from clipself_seg.config import load_config
from clipself_seg.config.weights import fetch_addresses, require_weights, weights_key
from clipself_seg.data.images import decode_image, pil_pixels, read_image
from clipself_seg.data.mappers.samples import chw
from clipself_seg.data.mappers.sem_seg import SemSegTestMapper
from clipself_seg.errors import InputError

logger = logging.getLogger(__name__)

R = TypeVar("R")
# An image as a caller has it: an array (H, W, 3) uint8 RGB, a PIL image, a path, or an http(s) address.
GivenImage = np.ndarray | Image.Image | str | os.PathLike[str]
MOST_BYTES = 1 << 28  # of an image that is fetched


def prediction_config(
    config_file: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    opts: Sequence[str] = (),
    check: Callable[[CfgNode], None] | None = None,
) -> CfgNode:
    """The configuration of a model that is trained already.

    Args:
        config_file: of the model.
        weights: a checkpoint, its name or its address, in place of the configured MODEL.WEIGHTS, or
            MODEL.CLIP.WEIGHTS where a model has no others (`weights_key`); "random" goes without.
        opts: further keys and values in turn.
        check: refuses a configuration of another task, before its weights are looked for.

    Raises:
        InputError: an unknown configuration or key, or no weights where any are needed.
    """
    given = [] if weights is None else [os.fspath(weights)]
    cfg = load_config(config_file, [*opts, *(["MODEL.WEIGHTS", *given] if given else [])])
    key = weights_key(cfg.MODEL.META_ARCHITECTURE)
    if given and key != "MODEL.WEIGHTS":
        cfg = load_config(config_file, [*opts, key, *given])
    if check is not None:
        check(cfg)
    cfg = fetch_addresses(cfg)
    of_clip = key == "MODEL.CLIP.WEIGHTS"
    named = cfg.MODEL.CLIP.WEIGHTS if of_clip else cfg.MODEL.WEIGHTS
    if not named and cfg.MODEL.MASK_GENERATOR.SOURCE != "masks":
        trained = "the model_final.pth of train_net.py"
        if of_clip:
            trained = "open_clip's tag of a CLIP, or the clip_final.safetensors of a distillation"
        names = official(key, config_file or "")
        raise InputError(
            f"{config_file} names no {key}: give a trained checkpoint, such as {trained}"
            + (f", or an official one: {names}" if names else "")
        )
    if named == "random":
        logger.warning("the weights are random: what is predicted means nothing")
        cfg = cfg.clone()
        cfg.defrost()
        (cfg.MODEL.CLIP if of_clip else cfg.MODEL).WEIGHTS = ""
    require_weights(cfg)
    return cfg


def require_architecture(
    cfg: CfgNode, wanted: str | tuple[str, ...], lack: str, folder: str
) -> None:
    """Refuse the configuration of another kind of model.

    Args:
        cfg: of any model.
        wanted: MODEL.META_ARCHITECTURE that it has to have, or several of which it has to have one.
        lack: what another one does not do, such as "does not label pixels".
        folder: of configurations that do.

    Raises:
        InputError: it has another one.
    """
    given = cfg.MODEL.META_ARCHITECTURE
    names = (wanted,) if isinstance(wanted, str) else wanted
    if given not in names:
        raise InputError(
            f"MODEL.META_ARCHITECTURE is {given}, which {lack}: take a configuration of "
            f"{' or '.join(names)}, such as those below {folder}"
        )


def predict_images(
    given: GivenImage | list[Any] | tuple[Any, ...],
    predict: Callable[[list[np.ndarray]], list[R]],
    max_pixels: int,
    batch_size: int,
) -> R | list[R]:
    """Predict for one image, or for each of a list or tuple.

    Args:
        given: an image, or a list or tuple of images; they are read a batch at a time.
        predict: makes the result of each image (H, W, 3) uint8 RGB of a batch.
        max_pixels: see `rgb_image`.
        batch_size: images of a batch, at least 1.

    Raises:
        InputError: an image cannot be used; of a list its index is named.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: give 1 or more")
    if not isinstance(given, list | tuple):
        return predict([rgb_image(given, max_pixels)])[0]
    results = list[R]()
    for start in range(0, len(given), batch_size):
        batch = list[np.ndarray]()
        for index, image in enumerate(given[start : start + batch_size], start):
            try:
                batch.append(rgb_image(image, max_pixels))
            except InputError as error:
                raise InputError(f"image {index} of the list: {error}") from None
        results += predict(batch)
    return results


def image_sample(image: np.ndarray, mapper: SemSegTestMapper) -> dict[str, Any]:
    """What a model is given of an image (H, W, 3) uint8 RGB, as the mapper makes it of a file."""
    resized = mapper.resize.get_transform(image).apply_image(image)
    return {"image": chw(resized), "height": image.shape[0], "width": image.shape[1]}


def rgb_image(image: GivenImage, max_pixels: int) -> np.ndarray:
    """The pixels of an image that is given, or read from its file or address.

    An address is fetched because it was typed, as a string, in a call: no file or configuration leads here.

    Args:
        image: array (H, W, 3) uint8 RGB (OpenCV's are BGR: `image[..., ::-1]`), PIL image of any mode, path,
            or http(s) address. Of all but arrays the EXIF orientation is applied, see `read_image`.
        max_pixels: largest number of pixels of an image that is decoded.

    Raises:
        InputError: the image cannot be read or fetched, or is not of that form.
    """
    if isinstance(image, Image.Image):
        image = pil_pixels(image, max_pixels=max_pixels)
    elif isinstance(image, str) and is_address(image):
        content = fetch_bytes(image, MOST_BYTES, "an image")
        image = decode_image(content, image, max_pixels)
    elif isinstance(image, str | os.PathLike):
        image = read_image(image, max_pixels=max_pixels)
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"an image is an array, a PIL image, a path or an address, got {type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"an image must be uint8 of shape (height, width, 3), got {image.dtype} of "
            f"{image.shape}"
        )
    return image
