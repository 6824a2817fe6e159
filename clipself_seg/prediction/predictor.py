"""The base of predictors of all tasks: configuration and weights, images in whatever form, and a vocabulary.

At the end stands `WorldCheck`: it warns where a model of the generated mini worlds is given other words or images.
"""

from __future__ import annotations

import abc
import difflib
import functools
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from detectron2.config import CfgNode, configurable
from PIL import Image
from torch import nn

from clipself_seg.checkpoints.choice import ARCHITECTURES, DEFAULTS, FOLDERS, weights_key
from clipself_seg.checkpoints.download import fetch_bytes, is_address
from clipself_seg.checkpoints.zoo import MINI_CLIPS, official
from clipself_seg.config import load_config
from clipself_seg.config.keys import default_config
from clipself_seg.config.load import MODEL, option_pairs
from clipself_seg.config.weights import fetch_addresses
from clipself_seg.data.datasets.own_file import forget_files
from clipself_seg.data.images import decode_image, pil_pixels, read_image
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass, Words
from clipself_seg.errors import InputError, nearest
from clipself_seg.models.build import build_model, registered_data
from clipself_seg.prediction.presence import THRESHOLD, WHAT, Absent, Presence, calibrated_threshold
from clipself_seg.prediction.pretrained import Pretrained
from clipself_seg.yaml_files import leaves, merge_layers, read_layers

logger = logging.getLogger(__name__)

R = TypeVar("R")  # what a model says of an image
# An image as a caller has it: an array (H, W, 3) uint8 RGB, a PIL image, a path, or an http(s) address.
GivenImage = np.ndarray | Image.Image | str | os.PathLike[str]
GivenImages = list[Any] | tuple[Any, ...]
MOST_BYTES = 1 << 28  # of an image that is fetched
SHOWN = 5  # names of classes in a warning
LITTLE = (
    'this model knows only the generated mini worlds ("red star", "blue ring", "grass" ...), {reason}: its '
    "answers mean little there"
)
WORLDS = ("mini", "mini2")
SIZES = frozenset(
    [(192, 144), (192, 128), (144, 192), (200, 150), (176, 160), (132, 176)]
    + [(208, 144), (160, 200), (184, 138), (168, 148)]
)
"""Width and height in pixels that images of the worlds have."""
SLIP = 0.85  # likeness of two names, in [0, 1], from which on one may be meant by the other


class ImageMapper(Protocol):
    """Makes samples of images as evaluation does."""

    max_pixels: int


class Look(NamedTuple):
    """Which words are in an image.

    Attributes:
        presence: name of each word -> its score; None: nobody asked.
        absent: the words that are not there.
        nothing: whether they are to be dropped, and no word is left; the model is asked for all of them then.
    """

    presence: Mapping[str, float] | None = None
    absent: tuple[str, ...] = ()
    nothing: bool = False


class ImagePredictor(Pretrained, Generic[R]):
    """The base of predictors: a model whose classes `set_vocabulary` of a subclass gives.

    A call (or `predict`, which is the same) takes an image or a list of them, reads them a batch at a time, and hands
    the pixels to `predict_batch`; predictions of files (`loop.predict_files`) have pixels already, and call that.

    Attributes:
        model: in evaluation mode; it belongs to the predictor.
        mapper: that of the task, which resizes images as in evaluation.
        trained: the training vocabulary, of a task that tells seen classes from unseen ones; None of others, and where
            the model's weights name its classes.
        seen: (K,) bool, which of the classes training has shown; None of a task that does not tell.
        world_check: warns of class names and images that the mini models do not know; None is silent.
        absent: what `set_absent` was given; None if nothing.
        task: "semantic", "panoptic" or "detection".
    """

    task: ClassVar[str]
    mapper: ImageMapper
    absent: Absent | None = None
    _presence: Presence | None = None
    _warning_of_classes = ""

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        mapper: ImageMapper,
        trained: Vocabulary | None = None,
        world_check: WorldCheck | None = None,
        config: CfgNode | None = None,
    ) -> None:
        """
        Args:
            model: it is put into evaluation mode.
            mapper, trained, world_check: see the attributes.
            config: configuration of model and mapper, which `save_pretrained` needs.
        """
        self.model = model.eval()
        self.mapper = mapper
        self.trained = trained
        self.world_check = world_check
        self.config = config

    @classmethod
    def from_config(cls, cfg: CfgNode, *, model: nn.Module | None = None) -> dict[str, Any]:
        """The model, or the configured one with its weights, and what tasks have in common beside it."""
        # What was trained on a user's own data knows more than the generated worlds.
        mini = cfg.MODEL.CLIP.NAME in MINI_CLIPS.values() and not cfg.DATASETS.DATA
        return {
            "model": build_model(cfg) if model is None else model,
            "world_check": WorldCheck(cls.task) if mini else None,
            "config": cfg,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names that labels stand for; empty before `set_vocabulary`."""
        return () if self.vocabulary is None else tuple(self.vocabulary.first_names)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Ids of the classes in the vocabulary, those of a data set or from 0; empty before `set_vocabulary`."""
        classes = () if self.vocabulary is None else self.vocabulary.classes
        return tuple(entry.dataset_id for entry in classes)

    @property
    def has_masks(self) -> bool:
        """Whether regions of the results have masks."""
        return True

    def require_vocabulary(self) -> Vocabulary:
        """The vocabulary.

        Raises:
            RuntimeError: `set_vocabulary` was not called.
        """
        if self.vocabulary is None:
            raise RuntimeError(
                'no words: give them, as in model("photo.jpg", "dog, grass"), or call set_vocabulary'
            )
        return self.vocabulary

    @abc.abstractmethod
    def set_vocabulary(self, words: Words) -> None:
        """Say which classes to look for, until the next call."""

    def use_words(self, words: Words) -> None:
        """Call `set_vocabulary`, unless the same words alone are set already."""
        vocabulary = Vocabulary.of(words)
        if vocabulary != self.vocabulary or any(value is not None for value in self.asked.values()):
            self.set_vocabulary(vocabulary)

    def export(
        self, path: str | os.PathLike[str], *, precision: str = "float32", text_tower: bool = False
    ) -> dict[str, dict[str, float]]:
        """Write the model with its present class names as one file of ONNX, see `clipself_seg.export`."""
        from clipself_seg.prediction.load import export

        return export(self, path, precision=precision, text_tower=text_tower)

    def _set_classes(
        self, words: Vocabulary, further: Sequence[VocabularyClass] = (), **asked: object
    ) -> None:
        """Keep what the model has been given.

        Args:
            words: the vocabulary.
            further: classes of the model beside those of the vocabulary.
            asked: further arguments of `set_vocabulary`.
        """
        if self.world_check is not None:
            self._warning_of_classes = self.world_check.warning_of([*words.worded, *further])
        self.vocabulary = words
        self.asked = asked
        self._presence = None

    def set_absent(
        self, what: str | None, threshold: float | str | os.PathLike[str] | None = None
    ) -> None:
        """Say what becomes of words that are not in an image, until the next call; see `prediction.presence`.

        Args:
            what: "drop" leaves an image's absent words out, as if they had not been given: they win nothing; only then
                the words of a background compete, and its threshold or void decides. "mark" changes nothing but
                "presence" and "absent" of results, which "drop" has too. None asks nothing.
            threshold: presence from which on a word is there, in standard deviations; None is 1.5, which no image of
                yours has calibrated. Or a JSON that says which words are in which of your images, from which it is
                calibrated, see `calibrated_threshold`; needs a vocabulary.

        Raises:
            InputError: another `what`, a threshold that is no finite number, or as `calibrated_threshold`.
        """
        if what not in (None, *WHAT):
            raise InputError(f'no "{what}" for absent words; {nearest(str(what), WHAT)}')
        calibrated = isinstance(threshold, str | os.PathLike)
        if isinstance(threshold, str | os.PathLike):
            words, most = self.require_vocabulary(), self.mapper.max_pixels
            threshold = calibrated_threshold(self.presence(), words, threshold, most)
        elif threshold is None:
            threshold = THRESHOLD
        elif not isinstance(threshold, Real) or not math.isfinite(threshold):
            raise InputError(f"the threshold of presence is {threshold}: give a finite number")
        self.absent = None if what is None else Absent(what, float(threshold), calibrated)

    def presence(self) -> Presence:
        """Scores the presence of the words that are set."""
        if self._presence is None:
            clip = getattr(self.model, "branch_clip", None) or self.model.clip
            self._presence = Presence(clip, self.require_vocabulary())
        return self._presence

    def _look(
        self, images: Sequence[np.ndarray], samples: Sequence[Any], always: Sequence[int] = ()
    ) -> list[Look]:
        """What is in each image (H, W, 3), if somebody asked; a sample gets the "classes" that are not dropped.

        Args:
            images: as for `predict_batch`.
            samples: what the model is given of them.
            always: classes of the model that are never absent.
        """
        if self.absent is None:
            return [Look()] * len(images)
        names, looks = self.require_vocabulary().first_names, list[Look]()
        for image, sample in zip(images, samples):
            scores = self.presence().scores(image)
            kept = sorted({*np.flatnonzero(scores >= self.absent.threshold).tolist(), *always})
            absent = tuple(name for k, name in enumerate(names) if k not in kept)
            drops = self.absent.what == "drop"
            looks.append(Look(dict(zip(names, scores.tolist())), absent, drops and not kept))
            if drops and kept:
                sample |= {"classes": kept}
        return looks

    @abc.abstractmethod
    def predict_batch(self, images: Sequence[np.ndarray]) -> list[R]:
        """The result of each image (H, W, 3) uint8 RGB, of which the model gets all at once."""

    def _predict_in_batches(
        self,
        image: GivenImage | GivenImages,
        words: Words | None,
        batch_size: int,
        predict_batch: Callable[[list[np.ndarray]], list[R]],
    ) -> R | list[R]:
        """The result of an image, or of each of a list.

        Args:
            image: an image, or a list or tuple of images; they are read a batch at a time.
            words: as `set_vocabulary` takes them; None for those that are set.
            batch_size: images of a batch, at least 1.
            predict_batch: that of the task with its further arguments.

        Raises:
            InputError: an image cannot be used; of a list its index is named.
        """
        if words is not None:
            self.use_words(words)
        self.require_vocabulary()
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: give 1 or more")
        max_pixels = self.mapper.max_pixels
        if not isinstance(image, list | tuple):
            return predict_batch([rgb_image(image, max_pixels)])[0]
        results = list[R]()
        for start in range(0, len(image), batch_size):
            batch = list[np.ndarray]()
            for index, listed in enumerate(image[start : start + batch_size], start):
                try:
                    batch.append(rgb_image(listed, max_pixels))
                except InputError as error:
                    raise InputError(f"image {index} of the list: {error}") from None
            results += predict_batch(batch)
        return results

    def warning_of(self, images: Sequence[np.ndarray]) -> str:
        """A sentence if the model does not know the vocabulary or images (H, W, 3) like these, else empty."""
        if self.world_check is None or self._warning_of_classes:
            return self._warning_of_classes
        return self.world_check.warning_of(images=images)


def prediction_config(
    config_file: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    opts: Sequence[str] = (),
    task: str | None = None,
) -> CfgNode:
    """The configuration of a model that is trained already.

    Args:
        config_file: of the model.
        weights: a checkpoint, its name or its address, in place of the configured MODEL.WEIGHTS, or
            MODEL.CLIP.WEIGHTS where a model has no others (`weights_key`); "random" goes without.
        opts: further keys and values in turn.
        task: what the model has to do; None for whatever it does.

    Raises:
        InputError: an unknown configuration or key, a model of another task, or no weights where any are needed.
    """
    architecture = _architecture(config_file, opts)
    if task is not None:
        # Before the other keys are read: a model of another task refuses those of this one.
        able = [name for name, of_task in ARCHITECTURES.items() if of_task == task]
        folder = next(folder for folder, of_task in FOLDERS.items() if of_task == task)
        lack = f"does not do the task {task}"
        require_architecture(architecture, able, lack, f"configs/{folder}")
    key = weights_key(architecture)
    typed = [] if weights is None else [key, os.fspath(weights)]
    cfg = load_config(config_file, [*opts, *typed])
    cfg = fetch_addresses(cfg)
    try:
        registered_data(cfg)
        forget_files()
    except InputError as error:
        logger.warning("the data of the training are not here, nor are its classes: %s", error)
    of_clip = key == "MODEL.CLIP.WEIGHTS"
    section = cfg.MODEL.CLIP if of_clip else cfg.MODEL
    if not section.WEIGHTS and cfg.MODEL.MASK_GENERATOR.SOURCE != "masks":
        trained = "the model_final.pth of `clipself-seg train`"
        if of_clip:
            trained = "open_clip's tag of a CLIP, or the clip_final.safetensors of a distillation"
        names = official(key, config_file or "")
        raise InputError(
            f"{config_file} names no {key}: give a trained checkpoint, such as {trained}"
            + (f", or an official one: {names}" if names else "")
        )
    if section.WEIGHTS == "random":
        logger.warning("the weights are random: what is predicted means nothing")
        cfg = cfg.clone()
        cfg.defrost()
        (cfg.MODEL.CLIP if of_clip else cfg.MODEL).WEIGHTS = ""
    return cfg


def _architecture(config_file: str | os.PathLike[str], opts: Sequence[str]) -> str:
    """MODEL.META_ARCHITECTURE, before any key is checked."""
    files = merge_layers(read_layers(config_file)) if config_file else {}
    values = dict(leaves(files)) | option_pairs(opts)
    return str(values.get(MODEL, default_config().MODEL.META_ARCHITECTURE))


def require_architecture(
    architecture: str, architectures: Sequence[str], lack: str, folder: str
) -> None:
    """Refuse the configuration of another kind of model.

    Args:
        architecture: value of MODEL.META_ARCHITECTURE.
        architectures: values of which it has to be one.
        lack: what another one does not do, such as "has no mask generator".
        folder: of configurations that do.

    Raises:
        InputError: it is another one.
    """
    if architecture not in architectures:
        raise InputError(
            f"MODEL.META_ARCHITECTURE is {architecture}, which {lack}: take a configuration of "
            f"{' or '.join(architectures)}, such as those below {folder}"
        )


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


class WorldCheck:
    """Looks at the class names and images of a model on the mini CLIP, and logs the first of no generated world.

    The mini CLIP was trained on captions and images of two generated worlds. To any other word, and of a photograph,
    it gives an answer all the same, and nothing in that says that it means little.

    A class is of a world if one of its synonyms is in a caption there: a shape with or without its colour, or a
    texture. An image is if it has one of the sizes of their images, in pixels. So an image of a world never causes a
    warning unless it was cut or resized, and a photograph causes none only if it has one of these ten sizes.
    """

    def __init__(self, task: str | None) -> None:
        """
        Args:
            task: of the model; None for a CLIP alone.
        """
        self.task = task
        self._warned = False

    def warning_of(
        self, classes: Sequence[VocabularyClass] = (), images: Sequence[np.ndarray] = ()
    ) -> str:
        """A sentence if a class name is in no caption of the worlds, or an image (H, W, 3) of another size; else empty.

        The first one is logged.
        """
        sentence = self._sentence(classes, images)
        if sentence and not self._warned:
            self._warned = True
            other = "eva02-vitb16" if self.task is None else DEFAULTS[self.task]
            logger.warning(f"{sentence}. For photographs take the model {other}")
        return sentence

    def _sentence(self, classes: Sequence[VocabularyClass], images: Sequence[np.ndarray]) -> str:
        strange = [
            entry.names[0]
            for entry in classes
            if not any(_plain(name) in known_names() for name in entry.names)
        ]
        if strange:
            listed = ", ".join(f'"{name}"{_meant(name)}' for name in strange[:SHOWN])
            more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
            return LITTLE.format(reason=f"which have no {listed}{more}")
        for height, width, _ in (image.shape for image in images):
            if (width, height) not in SIZES:
                size = f"{width} x {height} pixels"
                return LITTLE.format(
                    reason=f"whose images have other sizes than the {size} of one here"
                )
        return ""


@functools.cache
def known_names() -> frozenset[str]:
    """Names of the classes of both worlds, and of their shapes, as captions have them."""
    classes = [entry for world in WORLDS for entry in Vocabulary.load(world).classes]
    names = {name for entry in classes for name in entry.names}
    things = {name for entry in classes if entry.isthing for name in entry.names}
    return frozenset(names | {name.partition(" ")[2] for name in things})  # without the colour


def _meant(name: str) -> str:
    """A hint behind a name that is a slip of the pen away from a known one."""
    close = difflib.get_close_matches(_plain(name), sorted(known_names()), n=1, cutoff=SLIP)
    return f' (did you mean "{close[0]}"?)' if close else ""


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
