"""Predictors: a model with words, which gives the prediction of an image, or of each of a list.

    model = clipself_seg.load("catseg-base")
    result = model("photo.jpg", "dog|puppy, grass, sky")
    result.labels, result.names, result.fractions()

Here is what all tasks have in common; `task_predictors.py` has the predictor of each. A call that passes words hands
them down to the model as an argument: each of several threads gets its own, and those of the last call stay set.

Shapes: H, W pixels of the image as it is meant to be seen, K classes, N names of labels.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from detectron2.config import CfgNode, configurable
from PIL import Image
from torch import nn

from clipself_seg.data.datasets.own_file import forget_files
from clipself_seg.data.images import pil_pixels, read_image
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass, Words
from clipself_seg.errors import InputError, MissingFiles, known
from clipself_seg.models.build import build_model, registered_data
from clipself_seg.models.model_protocols import Classes
from clipself_seg.prediction import pretrained
from clipself_seg.prediction.mini_worlds import WorldCheck
from clipself_seg.prediction.presence import THRESHOLD, WHAT, Absent, Presence, calibrated_threshold
from clipself_seg.prediction.results import Prediction

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Prediction)
# An image as a caller has it: an array (H, W, 3) uint8 RGB, a PIL image, or a path.
GivenImage = np.ndarray | Image.Image | str | os.PathLike[str]
GivenImages = list[Any] | tuple[Any, ...]


@dataclasses.dataclass(frozen=True, eq=False)  # arrays are neither equal nor not
class GivenWords:
    """Words as a predictor and its model read them; never changed, so that each call keeps its own.

    Attributes:
        vocabulary: the K classes.
        classes: classes that the model is given.
        names: meanings of the N labels, the background among them.
        category_ids: ids of the classes in COCO's files: those of the vocabulary, or from 1.
        seen: (K,) bool, which of the classes training has shown; None of a task that does not tell.
        label_of_class: label of every class of the model.
        warning: a sentence if the model does not know words like these, else empty.
        asked: further arguments of `set_vocabulary`.
        background: label of the background, if there is one.
        threshold: score that a class has to reach to win against it.
    """

    vocabulary: Vocabulary
    classes: Classes
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    seen: Any
    label_of_class: tuple[int, ...]
    warning: str
    asked: Mapping[str, object] = dataclasses.field(default_factory=dict)
    background: int | None = None
    threshold: float = 0.0


class Look(NamedTuple):
    """The words that are in an image.

    Attributes:
        presence: name of each word -> its score; None: nobody asked.
        absent: the words that are not there.
        nothing: True if all words are dropped; the model still runs with all of them, and the result is emptied.
    """

    presence: Mapping[str, float] | None = None
    absent: tuple[str, ...] = ()
    nothing: bool = False


class ImagePredictor(abc.ABC, Generic[R]):
    """The base of predictors: a model and the words that are set.

    A call (or `predict`, which is the same) takes an image or a list of them, reads them a batch at a time, and hands
    the pixels to `predict_batch`; predictions of files (`loop.predict_files`) have pixels already, and call that.

    Attributes:
        model: in evaluation mode; it belongs to the predictor.
        mapper: that of the task, whose `resized` makes samples of images as evaluation does.
        trained: the training vocabulary, of a task that tells seen classes from unseen ones; None of others, and where
            the model's weights name its classes.
        given: the words that are set; None before `set_vocabulary`.
        world_check: warns of class names and images that the mini models do not know; None makes one that is silent.
        absent: settings of `set_absent`; None if words stay as they are.
        task: "semantic", "panoptic" or "detection".
    """

    task: ClassVar[str]
    model: Any
    mapper: Any
    given: GivenWords | None = None
    absent: Absent | None = None
    _presence: tuple[GivenWords, Presence] | None = None

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        mapper: Any,
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
        self.world_check = world_check or WorldCheck([])
        self.config = config

    @classmethod
    def from_config(cls, cfg: CfgNode, *, model: nn.Module | None = None) -> dict[str, Any]:
        """The model, or the configured one with its weights, and what tasks have in common beside it."""
        if model is None:
            try:
                registered_data(cfg)
                forget_files()
            except MissingFiles as error:
                logger.warning(
                    "the data of the training are not here, nor are its classes: %s", error
                )
        # A model that was trained on a user's own data knows more than the generated worlds.
        clips = [] if cfg.DATASETS.DATA else [cfg.MODEL.CLIP.NAME]
        return {
            "model": build_model(cfg) if model is None else model,
            "world_check": WorldCheck(clips, cls.task),
            "config": cfg,
        }

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The vocabulary that is set."""
        return None if self.given is None else self.given.vocabulary

    @property
    def names(self) -> tuple[str, ...]:
        """Names that labels stand for, a background among them; empty before `set_vocabulary`."""
        return () if self.given is None else self.given.names

    def require_words(self) -> GivenWords:
        """The words that are set.

        Raises:
            InputError: `set_vocabulary` was not called.
        """
        if self.given is None:
            raise InputError(
                'no words: give them, as in model("photo.jpg", "dog, grass"), or call set_vocabulary'
            )
        return self.given

    def set_vocabulary(self, words: Words, *asked: Any, **named: Any) -> GivenWords:
        """Says which classes to look for, until the next call; the arguments are those of `read` of the task."""
        given = self.read(words, *asked, **named)
        self.given = given
        self.model.classes = given.classes
        return given

    @abc.abstractmethod
    def read(self, words: Words) -> GivenWords:
        """Words as the model reads them, see the tasks."""

    def _given(
        self,
        words: Vocabulary,
        classes: Classes,
        further: Sequence[VocabularyClass] = (),
        **own: Any,
    ) -> GivenWords:
        """The words that a task has read.

        Args:
            words: the vocabulary.
            classes: the model's.
            further: classes of the model behind those of the vocabulary.
            own: attributes of `GivenWords` that are others than those of the words alone.
        """
        first = 0 if words.numbered else 1  # programs take 0 for nothing
        of_words: dict[str, Any] = {
            "names": tuple(words.first_names),
            "category_ids": tuple(first + entry.dataset_id for entry in words.classes),
            "seen": classes.seen,
            "label_of_class": tuple(range(len(words))),
            "warning": self.world_check.of_words([*words.worded, *further]),
        }
        return GivenWords(vocabulary=words, classes=classes, **of_words | own)

    def set_absent(
        self, what: str | None, threshold: float | str | os.PathLike[str] | None = None
    ) -> None:
        """Says what becomes of words that are not in an image, until the next call; see `prediction.presence`.

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
        if what is not None:
            known(what, WHAT, "treatment of absent words")
        calibrated = isinstance(threshold, str | os.PathLike)
        if isinstance(threshold, str | os.PathLike):
            given, most = self.require_words(), self.mapper.max_pixels
            presence = self.presence(given)
            threshold = calibrated_threshold(presence, given.vocabulary, threshold, most)
        elif threshold is None:
            threshold = THRESHOLD
        elif not math.isfinite(threshold):
            raise InputError(f"the threshold of presence is {threshold}: give a finite number")
        self.absent = None if what is None else Absent(what, float(threshold), calibrated)

    def presence(self, given: GivenWords) -> Presence:
        """Scores the presence of words."""
        kept = self._presence
        if kept is None or kept[0] is not given:
            clip = getattr(self.model, "branch_clip", None) or self.model.clip
            kept = self._presence = given, Presence(clip, given.vocabulary)
        return kept[1]

    def predict(
        self,
        image: GivenImage | GivenImages,
        words: Words | None = None,
        *,
        batch_size: int = 1,
        masks: Sequence[object] | None = None,
        **how: Any,
    ) -> Any:
        """The prediction of an image, or of each of a list.

        Args:
            image: array (H, W, 3) uint8 RGB, PIL image or path, see `rgb_image`; or a list or
                tuple of them.
            words: as `set_vocabulary` takes them, and they stay set; None for those that are set.
            batch_size: images of a list that are read and given to the model at once. The segmenters take them one
                after another on a CPU, so that results do not depend on it; on a GPU, and by a detector's tower, they
                go together, which may be faster and round differently.
            masks: of each image, for a model that takes them.
            how: further arguments of `outputs` of the task.

        Raises:
            InputError: an image cannot be read, or is not of that form; of a list its index is named.
        """
        assert batch_size > 0, batch_size
        given = self.given if words is None else self._words_of_call(words)
        single = not isinstance(image, list | tuple)
        images: Any = [image] if single else image
        if masks is not None and len(masks) != len(images):
            raise InputError(f"{len(images)} images and {len(masks)} masks: give each its own")
        results = list[R]()
        for start in range(0, len(images), batch_size):
            batch = list[np.ndarray]()
            for index, one in enumerate(images[start : start + batch_size], start):
                try:
                    batch.append(rgb_image(one, self.mapper.max_pixels))
                except InputError as error:
                    raise InputError(
                        str(error) if single else f"image {index} of the list: {error}"
                    ) from None
            if masks is not None:
                how["masks"] = masks[start : start + batch_size]
            results += self.predict_batch(batch, given, **how)
        return results[0] if single else results

    __call__ = predict

    def _words_of_call(self, words: Words) -> GivenWords:
        """The words of a call, read anew unless the same words alone are set."""
        given, vocabulary = self.given, Vocabulary.of(words)
        if given and given.vocabulary == vocabulary and not any(given.asked.values()):
            return given
        return self.set_vocabulary(vocabulary)

    def predict_batch(
        self, images: Sequence[np.ndarray], given: GivenWords | None = None, **how: Any
    ) -> list[R]:
        """The prediction of each image (H, W, 3) uint8 RGB, of which the model gets all at once.

        Args:
            images: RGB.
            given: the words; None for those that are set.
            how: options of the task, see its `outputs`.
        """
        given = given or self.require_words()
        self.world_check.of_images(images)
        samples = [self.mapper.resized(image) for image in images]
        looks = self._look(images, samples, given)
        run: Any = self.outputs  # with what the task offers
        outputs = run(samples, given, **how)
        return [
            self.result(
                output,
                given,
                look.nothing,
                names=given.names,
                category_ids=given.category_ids,
                image=image,
                presence=look.presence,
                absent=look.absent,
            )
            for output, image, look in zip(outputs, images, looks, strict=True)
        ]

    @abc.abstractmethod
    def outputs(self, samples: list[Any], given: GivenWords) -> Sequence[Mapping[str, Any]]:
        """The outputs of the model for samples of the mapper."""

    @abc.abstractmethod
    def result(
        self, output: Mapping[str, Any], given: GivenWords, nothing: bool, **common: Any
    ) -> R:
        """The prediction that the output for an image means.

        Args:
            output: of the model.
            given: the words.
            nothing: true if none of them is in the image, and nothing is to be found.
            common: attributes of every `Prediction`.
        """

    def predict_files(self, images: Sequence[np.ndarray], names: Sequence[str]) -> list[R]:
        """`predict_batch` of images whose results have these names, by which a task may look for more."""
        return self.predict_batch(images)

    def _look(
        self, images: Sequence[np.ndarray], samples: Sequence[Any], given: GivenWords
    ) -> list[Look]:
        """The words in each image (H, W, 3), see `set_absent`; a sample gets the "classes" that are not dropped."""
        if self.absent is None:
            return [Look()] * len(images)
        names, looks = given.vocabulary.first_names, list[Look]()
        # Classes of the background are never absent.
        always = [k for k, label in enumerate(given.label_of_class) if label == given.background]
        for image, sample in zip(images, samples):
            scores = self.presence(given).scores(image)
            kept = sorted({*np.flatnonzero(scores >= self.absent.threshold).tolist(), *always})
            absent = tuple(name for k, name in enumerate(names) if k not in kept)
            drops = self.absent.what == "drop"
            looks.append(Look(dict(zip(names, scores.tolist())), absent, drops and not kept))
            if drops and kept:
                sample |= {"classes": kept}
        return looks

    save_pretrained = pretrained.save
    push_to_hub = pretrained.push

    def about(self) -> dict[str, Any]:
        """The entries of files about the model and the words that are set, JSON."""
        return {"prompted": [list(synonyms) for synonyms in self.require_words().classes.names]}

    def categories(self) -> list[dict[str, Any]]:
        """COCO's entry of each class, by its label; a background that is none of the classes has none."""
        given = self.require_words()
        pairs = zip(given.category_ids, given.names)
        return [{"id": number, "name": name} for number, name in pairs]

    def warning_of(self, images: Sequence[np.ndarray], given: GivenWords) -> str:
        """A sentence if the model does not know these words or images (H, W, 3) like these, else empty."""
        return given.warning or self.world_check.of_images(images)


def rgb_image(image: GivenImage, max_pixels: int) -> np.ndarray:
    """The pixels of an image that is given, or read from its file.

    Args:
        image: array (H, W, 3) uint8 RGB (OpenCV's are BGR: `image[..., ::-1]`), PIL image of any mode, or path. Of
            all but arrays the EXIF orientation is applied, see `read_image`.
        max_pixels: largest number of pixels of an image that is decoded.

    Raises:
        InputError: the image cannot be read, or is not of that form.
    """
    if isinstance(image, Image.Image):
        image = pil_pixels(image, max_pixels=max_pixels)
    elif isinstance(image, str | os.PathLike):
        image = read_image(image, max_pixels=max_pixels)
    if not isinstance(image, np.ndarray):
        raise InputError(f"an image is an array, a PIL image or a path, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"an image must be uint8 of shape (height, width, 3), got {image.dtype} of "
            f"{image.shape}"
        )
    return image
