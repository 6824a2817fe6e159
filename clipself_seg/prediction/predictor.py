"""The base of predictors of all tasks: configuration and weights, images in whatever form, and a vocabulary."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from torch import nn

from clipself_seg.checkpoints.download import fetch_bytes, is_address
from clipself_seg.checkpoints.zoo import official
from clipself_seg.config import load_config
from clipself_seg.config.weights import fetch_addresses, require_weights, weights_key
from clipself_seg.data.images import decode_image, pil_pixels, read_image
from clipself_seg.data.mappers.samples import Sample, chw
from clipself_seg.data.mappers.sem_seg import SemSegTestMapper
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.errors import InputError
from clipself_seg.prediction.pretrained import Pretrained
from clipself_seg.prediction.world_check import WorldCheck

MODEL = "MODEL.META_ARCHITECTURE"
logger = logging.getLogger(__name__)

R = TypeVar("R")  # what a model says of an image
# An image as a caller has it: an array (H, W, 3) uint8 RGB, a PIL image, a path, or an http(s) address.
GivenImage = np.ndarray | Image.Image | str | os.PathLike[str]
GivenImages = list[Any] | tuple[Any, ...]
MOST_BYTES = 1 << 28  # of an image that is fetched


class ImageMapper(Protocol):
    """Makes samples of images as evaluation does."""

    max_pixels: int


class ImagePredictor(Pretrained, Generic[R]):
    """The base of predictors, whose classes are given by `set_vocabulary` of a subclass.

    Attributes:
        model: in evaluation mode; it belongs to the predictor.
        mapper: that of the task, which resizes images as in evaluation.
        world_check: warns of class names and images that the mini models do not know; None is silent.
        architectures: values of MODEL.META_ARCHITECTURE of the models that do the task.
        lack: what others do not do, such as "does not label pixels".
        folder: folder of configurations of the task, below configs/.
    """

    architectures: ClassVar[tuple[str, ...]]
    lack: ClassVar[str]
    folder: ClassVar[str]
    mapper: ImageMapper

    def __init__(
        self,
        *,
        model: nn.Module,
        mapper: ImageMapper,
        world_check: WorldCheck | None = None,
        config: CfgNode | None = None,
    ) -> None:
        """
        Args:
            model: it is put into evaluation mode.
            mapper: see the attribute.
            world_check: see the attribute.
            config: configuration of model and mapper, which `save_pretrained` needs.
        """
        self.model = model.eval()
        self.mapper = mapper
        self.world_check = world_check
        self.config = config

    @property
    def names(self) -> tuple[str, ...]:
        """Names that labels stand for; empty before `set_vocabulary`."""
        return () if self.vocabulary is None else tuple(self.vocabulary.names)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Ids of the classes in the vocabulary, those of a data set or from 0; empty before `set_vocabulary`."""
        classes = () if self.vocabulary is None else self.vocabulary.classes
        return tuple(entry.dataset_id for entry in classes)

    def require_vocabulary(self) -> Vocabulary:
        """The vocabulary.

        Raises:
            RuntimeError: `set_vocabulary` was not called.
        """
        if self.vocabulary is None:
            raise RuntimeError("call set_vocabulary before the predictor")
        return self.vocabulary

    @classmethod
    def require_task(cls, cfg: CfgNode) -> None:
        """Refuse the configuration of a model of another task."""
        require_architecture(cfg, cls.architectures, cls.lack, f"configs/{cls.folder}")

    def _set_classes(
        self, words: Vocabulary, prompted: Sequence[VocabularyClass] | None = None, **asked: object
    ) -> None:
        """Keep what the model has been given.

        Args:
            words: the vocabulary.
            prompted: the classes of the model, if they are not those of the vocabulary.
            asked: further arguments of `set_vocabulary`.
        """
        if self.world_check is not None:
            self.world_check.look_at_classes(words.classes if prompted is None else prompted)
        self.vocabulary = words
        self.asked = asked

    def _results(
        self,
        image: GivenImage | GivenImages,
        predict: Callable[[list[np.ndarray]], list[R]],
        batch_size: int,
    ) -> R | list[R]:
        """The result of an image, or of each of a list.

        Args:
            image: an image, or a list or tuple of images; they are read a batch at a time.
            predict: makes the result of each image (H, W, 3) uint8 RGB of a batch.
            batch_size: images of a batch, at least 1.

        Raises:
            InputError: an image cannot be used; of a list its index is named.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: give 1 or more")
        max_pixels = self.mapper.max_pixels
        if not isinstance(image, list | tuple):
            return self._looked_at([rgb_image(image, max_pixels)], predict)[0]
        results = list[R]()
        for start in range(0, len(image), batch_size):
            batch = list[np.ndarray]()
            for index, listed in enumerate(image[start : start + batch_size], start):
                try:
                    batch.append(rgb_image(listed, max_pixels))
                except InputError as error:
                    raise InputError(f"image {index} of the list: {error}") from None
            results += self._looked_at(batch, predict)
        return results

    def _looked_at(
        self, images: list[np.ndarray], predict: Callable[[list[np.ndarray]], list[R]]
    ) -> list[R]:
        if self.world_check is not None:
            self.world_check.look_at_images(images)
        return predict(images)


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
    try:
        cfg = load_config(config_file, opts)
    except InputError:
        # A model of another task does not read the keys of this one.
        model = [word for pair in zip(opts[::2], opts[1::2]) if pair[0] == MODEL for word in pair]
        if check is not None and (config_file or model):
            check(load_config(config_file, model))
        raise
    key = weights_key(cfg.MODEL.META_ARCHITECTURE)
    if weights is not None:
        cfg = load_config(config_file, [*opts, key, os.fspath(weights)])
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
    cfg: CfgNode, architectures: tuple[str, ...], lack: str, folder: str
) -> None:
    """Refuse the configuration of another kind of model.

    Args:
        cfg: of any model.
        architectures: values of MODEL.META_ARCHITECTURE, of which it has to have one.
        lack: what another one does not do, such as "does not label pixels".
        folder: of configurations that do.

    Raises:
        InputError: it has another one.
    """
    if cfg.MODEL.META_ARCHITECTURE not in architectures:
        raise InputError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which {lack}: take a configuration of "
            f"{' or '.join(architectures)}, such as those below {folder}"
        )


def image_sample(image: np.ndarray, mapper: SemSegTestMapper) -> Sample:
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
