"""Predictors: a model with words, which gives the prediction of an image, or of each of a list.

    model = clipself_seg.load("catseg-base")
    result = model("photo.jpg", "dog|puppy, grass, sky")
    result.labels, result.names, result.fractions()

First what all tasks have in common, then the predictor of each task. A call hands its words down to the model as an
argument, so that calls in several threads do not meet.

Shapes: H, W pixels of the image as it is meant to be seen, K classes, N names of labels.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
import math
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, overload

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from PIL import Image
from torch import Tensor, nn

from clipself_seg.checkpoints.download import fetch_bytes, is_address
from clipself_seg.data.datasets.records import find_dataset, train_vocabulary_name
from clipself_seg.data.datasets.table import DetectionSet, PanopticSet
from clipself_seg.data.given_masks import given_masks
from clipself_seg.data.images import decode_image, pil_pixels, read_image
from clipself_seg.data.mappers.detection import DetectionTestMapper
from clipself_seg.data.mappers.panoptic import PanopticTestMapper, mask_entries
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.mappers.sem_seg import SemSegTestMapper
from clipself_seg.data.vocabulary import (
    Vocabulary,
    VocabularyClass,
    Words,
    as_vocabulary,
    available_vocabularies,
    class_entries,
    load_vocabulary,
    own_words,
    seen_by_exact_spelling,
    seen_in_training,
)
from clipself_seg.errors import InputError, nearest
from clipself_seg.models import CATSeg, FViT, OpenPanoptic, ZeroShotSegmenter
from clipself_seg.models.build import build_model
from clipself_seg.models.protocol import Classes
from clipself_seg.prediction.mini_worlds import WorldCheck
from clipself_seg.prediction.presence import THRESHOLD, WHAT, Absent, Presence, calibrated_threshold
from clipself_seg.prediction.pretrained import Pretrained
from clipself_seg.prediction.results import (
    Detections,
    PanopticSegmentation,
    Prediction,
    Segmentation,
    label_type,
)

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Prediction)
# An image as a caller has it: an array (H, W, 3) uint8 RGB, a PIL image, a path, or an http(s) address.
GivenImage = np.ndarray | Image.Image | str | os.PathLike[str]
GivenImages = list[Any] | tuple[Any, ...]
MOST_BYTES = 1 << 28  # of an image that is fetched
BACKGROUND_SCORE = 0.5  # below it every word is more likely to be absent from a pixel than there


class ImageMapper(Protocol):
    """Makes samples of images as evaluation does."""

    max_pixels: int

    def resized(self, image: np.ndarray) -> Sample:
        """The sample of an image (H, W, 3) uint8 RGB."""


@dataclasses.dataclass(frozen=True, eq=False)  # arrays are neither equal nor not
class GivenWords:
    """Words as a predictor and its model read them; never changed, so that each call keeps its own.

    Attributes:
        vocabulary: the K classes.
        classes: what the model is given.
        names: what the N labels mean, the background among them.
        category_ids: ids of the classes in the vocabulary, those of a data set or from 0.
        asked: further arguments of `set_vocabulary`.
        seen: (K,) bool, which of the classes training has shown; None of a task that does not tell.
        label_of_class: label of every class of the model.
        background: label of the background, if there is one.
        threshold: score that a class has to reach to win against it.
        warning: a sentence if the model does not know words like these, else empty.
    """

    vocabulary: Vocabulary
    classes: Classes
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    asked: Mapping[str, object]
    seen: np.ndarray | None
    label_of_class: tuple[int, ...]
    background: int | None
    threshold: float
    warning: str


class Look(NamedTuple):
    """Which words are in an image.

    Attributes:
        presence: name of each word -> its score; None: nobody asked.
        absent: the words that are not there.
        nothing: true if they are to be dropped, and no word is left; the model is asked for all of them then.
    """

    presence: Mapping[str, float] | None = None
    absent: tuple[str, ...] = ()
    nothing: bool = False

    def fields(self) -> dict[str, Any]:
        """Attributes of the prediction."""
        return {"presence": self.presence, "absent": self.absent}


class ImagePredictor(Pretrained, Generic[R]):
    """The base of predictors: a model and the words that are set.

    A call (or `predict`, which is the same) takes an image or a list of them, reads them a batch at a time, and hands
    the pixels to `predict_batch`; predictions of files (`loop.predict_files`) have pixels already, and call that.

    Attributes:
        model: in evaluation mode; it belongs to the predictor.
        mapper: that of the task, which resizes images as in evaluation.
        trained: the training vocabulary, of a task that tells seen classes from unseen ones; None of others, and where
            the model's weights name its classes.
        given: the words that are set; None before `set_vocabulary`.
        world_check: warns of class names and images that the mini models do not know; None is silent.
        absent: what `set_absent` was given; None if nothing.
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
        # A model that was trained on a user's own data knows more than the generated worlds.
        clips = [] if cfg.DATASETS.DATA else [cfg.MODEL.CLIP.NAME]
        return {
            "model": build_model(cfg) if model is None else model,
            "world_check": WorldCheck.of(clips, cls.task),
            "config": cfg,
        }

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The vocabulary that is set."""
        return None if self.given is None else self.given.vocabulary

    @property
    def asked(self) -> Mapping[str, object]:
        """Further arguments of the last `set_vocabulary`."""
        return {} if self.given is None else self.given.asked

    @property
    def names(self) -> tuple[str, ...]:
        """Names that labels stand for, a background among them; empty before `set_vocabulary`."""
        return () if self.given is None else self.given.names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Ids of the classes in the vocabulary, those of a data set or from 0; empty before `set_vocabulary`."""
        return () if self.given is None else self.given.category_ids

    @property
    def seen(self) -> np.ndarray | None:
        """(K,) bool, which of the classes training has shown; None of a task that does not tell."""
        return None if self.given is None else self.given.seen

    @property
    def has_masks(self) -> bool:
        """True if regions of the results have masks."""
        return True

    def require_words(self) -> GivenWords:
        """The words that are set.

        Raises:
            RuntimeError: `set_vocabulary` was not called.
        """
        if self.given is None:
            raise RuntimeError(
                'no words: give them, as in model("photo.jpg", "dog, grass"), or call set_vocabulary'
            )
        return self.given

    def require_vocabulary(self) -> Vocabulary:
        """The vocabulary that is set, see `require_words`."""
        return self.require_words().vocabulary

    def set_vocabulary(self, words: Words, *asked: Any, **named: Any) -> None:
        """Say which classes to look for, until the next call; the arguments are those of `read` of the task."""
        self._set(self.read(words, *asked, **named))

    @abc.abstractmethod
    def read(self, words: Words) -> GivenWords:
        """Words as the model reads them, see the tasks."""

    def _set(self, given: GivenWords) -> None:
        self.given = given
        self.model.classes = given.classes

    def _given(
        self,
        words: Vocabulary,
        classes: Classes,
        *,
        further: Sequence[VocabularyClass] = (),
        names: tuple[str, ...] | None = None,
        background: int | None = None,
        threshold: float = 0.0,
        **asked: object,
    ) -> GivenWords:
        """What a task has read.

        Args:
            words: the vocabulary.
            classes: the model's.
            further: classes of the model behind those of the vocabulary; all play the background.
            names, background, threshold: see `GivenWords`.
            asked: further arguments of `set_vocabulary`.
        """
        check = self.world_check
        return GivenWords(
            vocabulary=words,
            classes=classes,
            names=tuple(words.names) if names is None else names,
            category_ids=tuple(entry.dataset_id for entry in words.classes),
            asked=asked,
            seen=classes.seen,
            label_of_class=(*range(len(words)), *(background or 0 for _ in further)),
            background=background,
            threshold=threshold,
            warning="" if check is None else check.of_words([*words.worded, *further]),
        )

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
            given, most = self.require_words(), self.mapper.max_pixels
            presence = self.presence(given)
            threshold = calibrated_threshold(presence, given.vocabulary, threshold, most)
        elif threshold is None:
            threshold = THRESHOLD
        elif not isinstance(threshold, Real) or not math.isfinite(threshold):
            raise InputError(f"the threshold of presence is {threshold}: give a finite number")
        self.absent = None if what is None else Absent(what, float(threshold), calibrated)

    def presence(self, given: GivenWords) -> Presence:
        """Scores the presence of words."""
        kept = self._presence
        if kept is None or kept[0] is not given:
            clip = getattr(self.model, "branch_clip", None) or self.model.clip
            kept = self._presence = given, Presence(clip, given.vocabulary)
        return kept[1]

    @overload
    def predict(
        self, image: GivenImage, words: Words | None = None, *, batch_size: int = 1, **how: Any
    ) -> R: ...

    @overload
    def predict(
        self, image: GivenImages, words: Words | None = None, *, batch_size: int = 1, **how: Any
    ) -> list[R]: ...

    def predict(
        self,
        image: GivenImage | GivenImages,
        words: Words | None = None,
        *,
        batch_size: int = 1,
        masks: Sequence[object] | None = None,
        **how: Any,
    ) -> R | list[R]:
        """The prediction of an image, or of each of a list.

        Args:
            image: array (H, W, 3) uint8 RGB, PIL image, path, or http(s) address, see `rgb_image`; or a list or
                tuple of them.
            words: as `set_vocabulary` takes them, and they stay set; None for those that are set.
            batch_size: images of a list that are read and given to the model at once. The segmenters take them one
                after another on a CPU, so that results do not depend on it; on a GPU, and by a detector's tower, they
                go together, which may be faster and round differently.
            masks: of each image, for a model that takes them.
            how: further arguments of `predict_batch` of the task.

        Raises:
            InputError: an image cannot be read, or is not of that form; of a list its index is named.
        """
        given = self._words_of_call(words)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: give 1 or more")
        single = not isinstance(image, list | tuple)
        images = [image] if single else image
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

    def _words_of_call(self, words: Words | None) -> GivenWords:
        """The words of a call, read anew unless the same words alone are set."""
        given = self.given
        if words is None:
            return self.require_words()
        vocabulary = as_vocabulary(words)
        if given is None or given.vocabulary != vocabulary or any(given.asked.values()):
            given = self.read(vocabulary)
            self._set(given)
        return given

    @abc.abstractmethod
    def predict_batch(
        self, images: Sequence[np.ndarray], given: GivenWords | None = None
    ) -> list[R]:
        """The prediction of each image (H, W, 3) uint8 RGB, of which the model gets all at once.

        Args:
            images: RGB.
            given: the words; None for those that are set.
        """

    def predict_files(
        self, images: Sequence[np.ndarray], names: Sequence[str], **how: Any
    ) -> list[R]:
        """`predict_batch` of images whose results have these names."""
        return self.predict_batch(images, **how)

    def _samples(self, images: Sequence[np.ndarray]) -> list[Any]:
        """What the model is given of images, which are looked at if it knows the mini worlds alone."""
        if self.world_check is not None:
            self.world_check.of_images(images)
        return [self.mapper.resized(image) for image in images]

    def _look(
        self,
        images: Sequence[np.ndarray],
        samples: Sequence[Any],
        given: GivenWords,
        always: Sequence[int] = (),
    ) -> list[Look]:
        """What is in each image (H, W, 3), if somebody asked; a sample gets the "classes" that are not dropped.

        Args:
            images: as for `predict_batch`.
            samples: what the model is given of them.
            given: the words.
            always: classes of the model that are never absent.
        """
        if self.absent is None:
            return [Look()] * len(images)
        names, looks = given.vocabulary.names, list[Look]()
        for image, sample in zip(images, samples):
            scores = self.presence(given).scores(image)
            kept = sorted({*np.flatnonzero(scores >= self.absent.threshold).tolist(), *always})
            absent = tuple(name for k, name in enumerate(names) if k not in kept)
            drops = self.absent.what == "drop"
            looks.append(Look(dict(zip(names, scores.tolist())), absent, drops and not kept))
            if drops and kept:
                sample |= {"classes": kept}
        return looks

    def warning_of(self, images: Sequence[np.ndarray]) -> str:
        """A sentence if the model does not know the words that are set or images (H, W, 3) like these, else empty."""
        if self.world_check is None:
            return ""
        return (self.given and self.given.warning) or self.world_check.of_images(images)


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


class SemanticPredictor(ImagePredictor[Segmentation]):
    """Segments images into classes; a call gives a `Segmentation`, with `scores=True` its scores too."""

    task = "semantic"
    model: CATSeg | ZeroShotSegmenter
    mapper: SemSegTestMapper

    @configurable
    def __init__(self, *, threshold: float = BACKGROUND_SCORE, **common: Any) -> None:
        """`SemanticPredictor(cfg)` builds the configured model with its weights.

        Args:
            threshold: score that a class has to reach to win against a background that has no words, where
                `set_vocabulary` is given none.
            common: see `ImagePredictor`.
        """
        super().__init__(**common)
        self.default_threshold = threshold

    @classmethod
    def from_config(cls, cfg: CfgNode, *, model: nn.Module | None = None) -> dict[str, Any]:
        """Reads what the model and `SemSegTestMapper` do, and ``TEST.BACKGROUND.THRESHOLD``.

        Raises:
            InputError: weights that do not fit.
        """
        return super().from_config(cfg, model=model) | {
            "mapper": SemSegTestMapper(cfg),
            "threshold": cfg.TEST.BACKGROUND.THRESHOLD or BACKGROUND_SCORE,
        }

    @property
    def background(self) -> int | None:
        """Label of the background, if there is one."""
        return None if self.given is None else self.given.background

    @property
    def threshold(self) -> float:
        """Score that a class has to reach to win against the background."""
        return 0.0 if self.given is None else self.given.threshold

    def read(
        self, words: Words, background: str | None = None, threshold: float | None = None
    ) -> GivenWords:
        """Words as the model reads them.

        Every synonym of your own class names counts (CAT-Seg averages their embeddings); a built-in
        vocabulary is read as the model's key SYNONYMS says, as in evaluation.

        Args:
            words: "dog|puppy, grass", a file or a built-in name, see `read_words`; a list, see `own_words`; or a
                vocabulary.
            background: name of what is none of the classes; without one every pixel gets the best
                class. "background|wall|floor" adds words that compete for pixels but are not told
                apart. A class of that name, in whatever case, plays the background itself.
            threshold: score, 0 to 1, that a class has to reach to win against the background;
                by default that of the predictor, which is 0.5 if the configuration says nothing, or 0 where words
                compete for the background.

        Raises:
            InputError: no words, an empty one, one word twice, a background that is a synonym of a
                class, or a threshold outside 0 to 1.
        """
        words = as_vocabulary(words)
        names = list(words.names)
        further: tuple[VocabularyClass, ...] = ()
        place: int | None = None
        if background is not None:
            name, *others = own_words([background], "the background").classes[0].names
            place = _background_class(name, others, words)
            if place is None:
                place = len(names)
                names.append(name)
            further = own_words(others).classes if others else ()
            if threshold is None:
                threshold = 0.0 if others else self.default_threshold
        elif threshold is not None:
            raise InputError("a threshold needs a background to fall back to: name one")
        if not 0 <= (threshold or 0) <= 1:
            raise InputError(f"the threshold of the background must be in [0, 1], got {threshold}")
        if len(names) == 1:
            logger.warning(
                '"%s" is the only class, so every pixel gets it: name others beside it, or a background',
                names[0],
            )
        # Own words count with every synonym; those of a benchmark as the model was built to read them.
        classes = self.model.classes_of(
            dataclasses.replace(words, classes=(*words.classes, *further)),
            all_synonyms=None if words.name in available_vocabularies() else True,
        )
        given = self._given(
            words,
            classes,
            further=further,
            names=tuple(names),
            background=place,
            threshold=threshold or 0.0,
        )
        return dataclasses.replace(
            given, asked={"background": background, "threshold": threshold}, seen=None
        )

    def predict_batch(
        self,
        images: Sequence[np.ndarray],
        given: GivenWords | None = None,
        *,
        scores: bool = False,
    ) -> list[Segmentation]:
        """The segmentation of each image, see `ImagePredictor.predict_batch`.

        Args:
            images: RGB.
            given: the words; None for those that are set.
            scores: keep the scores, which take 4 N H W bytes; else memory does not grow with N.
        """
        given = given or self.require_words()
        if self.absent and self.absent.what == "drop" and given.background is None:
            raise InputError(
                "absent words are dropped, and pixels of none are the background's: name one, as in background"
            )
        samples = self._samples(images)
        always = [k for k, label in enumerate(given.label_of_class) if label == given.background]
        looks = self._look(images, samples, given, always)
        output = "scores" if scores else "labels"
        outputs = self.model(samples, output=output, classes=given.classes)
        return [
            self._segmentation(output, image, given, look)
            for output, image, look in zip(outputs, images, looks, strict=True)
        ]

    def _segmentation(
        self, output: Mapping[str, Tensor], image: np.ndarray, given: GivenWords, look: Look
    ) -> Segmentation:
        """The segmentation of an image from the model's scores, or from the best class of every pixel."""
        maps, count = None, len(given.names)
        if "sem_seg" in output:
            maps = _label_scores(output["sem_seg"], given)
            labels, best = maps.argmax(dim=0), maps.amax(dim=0)
        else:
            best = output["sem_seg_best"]
            of_class = torch.tensor(given.label_of_class, device=best.device)
            labels = of_class[output["sem_seg_labels"]]
            if given.background is not None:
                labels = labels.masked_fill(best < given.threshold, given.background)
            best = best.clamp(min=given.threshold)
        if look.nothing and given.background is not None:
            labels = torch.full_like(labels, given.background)
        positions = labels.cpu().numpy().astype(label_type(count))
        flat = positions.ravel()
        pixels = np.bincount(flat, minlength=count)
        sums = np.bincount(flat, best.cpu().numpy().ravel(), minlength=count)
        return Segmentation(
            labels=positions,
            names=given.names,
            scores=None if maps is None else maps.cpu().numpy(),
            class_scores=sums / np.maximum(pixels, 1),
            category_ids=given.category_ids,
            background=given.background,
            image=image,
            **look.fields(),
        )


def _background_class(name: str, others: Sequence[str], words: Vocabulary) -> int | None:
    """The class that is called like the background, whatever case, if there is one.

    Raises:
        InputError: the background has a word that stands in the vocabulary for something else.
    """
    called = [class_name.strip().casefold() for class_name in words.names]
    alike = name.casefold() in called
    known = {word.strip().casefold(): entry for entry in words.classes for word in entry.names}
    for word in others if alike else (name, *others):
        if word.casefold() in known:
            first = known[word.casefold()].names[0]
            hint = f'; the class itself is called "{first}"' if word == name else ""
            raise InputError(
                f'"{word}" is a word of the vocabulary and one of the background: remove one{hint}'
            )
    return called.index(name.casefold()) if alike else None


def _label_scores(scores: Tensor, given: GivenWords) -> Tensor:
    """(N, H, W) from the model's: the background's is that of its best word or the threshold."""
    if given.background is None:
        return scores
    kept = scores.new_zeros(len(given.names), *scores.shape[1:])
    kept[given.background] = given.threshold
    for label, class_scores in zip(given.label_of_class, scores):
        kept[label] = torch.maximum(kept[label], class_scores)
    return kept


class PanopticPredictor(ImagePredictor[PanopticSegmentation]):
    """Finds the segments of images; a call gives a `PanopticSegmentation`.

    Masks that somebody else made, such as SAM's, are named by CLIP alone:

        model = clipself_seg.load(config_file="panoptic/masks+openai_vitb16")
        result = model("photo.jpg", "dog, grass", stuff="grass", masks="masks/photo.json")

    With opts=["MODEL.MASK_GENERATOR.OUTPUTS", "sam2"] for `load` the masks are SAM 2's, and no argument.

    Attributes:
        trained: the training vocabulary; its classes are seen, the model's alpha is for them, and beta belongs to the
            others.
    """

    task = "panoptic"
    model: OpenPanoptic
    mapper: PanopticTestMapper
    trained: Vocabulary

    @classmethod
    def from_config(cls, cfg: CfgNode, *, model: nn.Module | None = None) -> dict[str, Any]:
        """Reads what `OpenPanoptic` and `PanopticTestMapper` do, TEST.TRAIN_VOCABULARY and
        DATASETS.TRAIN.

        Raises:
            InputError: weights that do not fit, or no training vocabulary.
        """
        trained = train_vocabulary_name(cfg, PanopticSet)
        if not trained:
            raise InputError(
                "DATASETS.TRAIN is empty: which classes are seen? Name the training vocabulary, such as "
                "openseg_coco_panoptic_133 (TEST.TRAIN_VOCABULARY)"
            )
        return super().from_config(cfg, model=model) | {
            "mapper": PanopticTestMapper(cfg),
            "trained": load_vocabulary(trained),
        }

    def read(self, words: Words, stuff: Words | None = None) -> GivenWords:
        """Words as the model reads them; every synonym counts.

        Args:
            words: see `panoptic_words`.
            stuff: the classes among them that are stuff, in the same form; see `panoptic_words`.

        Raises:
            InputError: as `panoptic_words`.
        """
        words = panoptic_words(words, stuff)
        seen = seen_by_exact_spelling(words, self.trained)
        return self._given(words, self.model.classes_of(words, seen))

    def predict(  # type: ignore[override]
        self,
        image: GivenImage | GivenImages,
        words: Words | None = None,
        *,
        stuff: Words | None = None,
        masks: Any = None,
        batch_size: int = 1,
    ) -> Any:
        """The segments of an image, or of each of a list, see `ImagePredictor.predict`.

        Args:
            image, batch_size: as there.
            words: words of the call, which stay set; None for those that are set.
            stuff: those of the words that are stuff, see `panoptic_words`.
            masks: for a model of MODEL.MASK_GENERATOR.SOURCE masks, and only for it: those of the image, in one of the
                forms of `given_masks`; of a list of images a list of them. None where MODEL.MASK_GENERATOR.OUTPUTS
                is a model that finds them.

        Raises:
            InputError: as there. Masks that do not fit, are missing, or are given to a model that generates its own.
        """
        if masks is not None and not self.model.masks_given:
            raise InputError(
                "masks are given to a model that generates its own: take MODEL.MASK_GENERATOR.SOURCE masks, as "
                "configs/panoptic/masks+openai_vitb16.yaml has it"
            )
        if masks is not None and not isinstance(image, list | tuple):
            masks = [masks]
        if words is not None or stuff is not None:
            words = panoptic_words(self.require_vocabulary() if words is None else words, stuff)
        return super().predict(image, words, batch_size=batch_size, masks=masks)

    __call__ = predict  # type: ignore[assignment]

    def predict_batch(
        self,
        images: Sequence[np.ndarray],
        given: GivenWords | None = None,
        *,
        masks: Sequence[object] = (),
    ) -> list[PanopticSegmentation]:
        """The segments of each image, see `ImagePredictor.predict_batch`.

        Args:
            images: RGB.
            given: the words; None for those that are set.
            masks: of each image, see `predict`.
        """
        given = given or self.require_words()
        samples = self._samples(images)
        for image, sample, image_masks in zip(images, samples, masks):
            if image_masks is not None:
                sample |= mask_entries(given_masks(image_masks, image.shape[:2]))
        # Instances and class maps, which nobody asks for here, cost time and memory.
        fusion = self.model.fusion.returned(("panoptic",))
        looks = self._look(images, samples, given)
        outputs = self.model(samples, fusions={"own": fusion}, classes=given.classes)
        results = []
        for image, output, look in zip(images, outputs, looks, strict=True):
            ids, segments = output["fusions"]["own"]["panoptic_seg"]
            if look.nothing:
                ids, segments = torch.zeros_like(ids), []
            result = PanopticSegmentation.of_segments(
                ids.cpu().numpy(), segments, given.vocabulary, image, **look.fields()
            )
            results.append(result)
        return results

    def predict_files(
        self, images: Sequence[np.ndarray], names: Sequence[str], **how: Any
    ) -> list[PanopticSegmentation]:
        """`predict_batch` of images whose results have these names; of a model that is given masks by the files of these
        names in its folder.

        Raises:
            InputError: an image has none in it.
        """
        folder = self.mapper.masks
        if folder is None:
            return self.predict_batch(images)
        masks = [folder.required(name) for name in names]
        # One after another: masks take more memory than images.
        return [self.predict_batch([image], masks=[own])[0] for image, own in zip(images, masks)]


def panoptic_words(words: Words, stuff: Words | None = None) -> Vocabulary:
    """A vocabulary that tells things from stuff.

    Args:
        words: "dog|puppy, grass", a file or a built-in name, see `read_words`; a list, see `own_words`; or a
            vocabulary.
        stuff: those that are stuff, any synonym in any case, in the same forms, or "" for none; all others are things.
            None: as the vocabulary says; of one's own words all are things.

    Raises:
        InputError: no words, an empty one, or one word twice; stuff that is none of them; a
            built-in vocabulary that does not tell things from stuff.
    """
    words = as_vocabulary(words)
    if stuff is None:
        if words.name in available_vocabularies() and words.classes[0].isthing is None:
            telling = [n for n in available_vocabularies() if "isthing" in class_entries(n)[0]]
            raise InputError(
                f'vocabulary "{words.name}" does not tell things from stuff: say which words are stuff, '
                f"or take one of {', '.join(telling)}"
            )
        return words
    named = [name for entry in as_vocabulary(stuff).classes for name in entry.names] if stuff else []
    keys = [{name.strip().casefold() for name in entry.names} for entry in words.classes]
    for name in named:
        if not any(name.casefold() in own for own in keys):
            others = nearest(name, {n for entry in words.classes for n in entry.names})
            raise InputError(f'stuff "{name}" is not in the vocabulary; {others}')
    folded = {name.casefold() for name in named}
    classes = tuple(
        dataclasses.replace(entry, isthing=own.isdisjoint(folded))
        for entry, own in zip(words.classes, keys)
    )
    return dataclasses.replace(words, classes=classes)


class DetectionPredictor(ImagePredictor[Detections]):
    """Detects objects in images; a call gives `Detections`: those with a score above MODEL.FVIT.SCORE_THRESHOLD, and of
    them the best TEST.DETECTIONS_PER_IMAGE.

    Attributes:
        trained: the training vocabulary, whose classes are seen; None: the one that is stored in the model's
            checkpoint.
    """

    task = "detection"
    model: FViT
    mapper: DetectionTestMapper

    @classmethod
    def from_config(cls, cfg: CfgNode, *, model: nn.Module | None = None) -> dict[str, Any]:
        """Reads what `FViT` and `DetectionTestMapper` do, TEST.TRAIN_VOCABULARY, and, of weights that
        do not know their classes, as the released ones, DATASETS.TRAIN.

        Raises:
            InputError: weights that do not fit, or no training vocabulary.
        """
        common = super().from_config(cfg, model=model)
        trained = cfg.TEST.TRAIN_VOCABULARY
        if not trained and not common["model"].trained_names:
            if not cfg.DATASETS.TRAIN:
                raise InputError(
                    "neither the weights nor DATASETS.TRAIN say which classes are seen: name the training "
                    "vocabulary, such as ov_coco_65 (TEST.TRAIN_VOCABULARY)"
                )
            trained = find_dataset(cfg.DATASETS.TRAIN[0], DetectionSet).vocabulary
        return common | {
            "mapper": DetectionTestMapper(cfg),
            "trained": load_vocabulary(trained) if trained else None,
        }

    @property
    def has_masks(self) -> bool:
        return self.model.has_masks

    def read(self, words: Words) -> GivenWords:
        """Words as the model reads them.

        Every synonym of your own class names counts (the text embeddings are averaged); a built-in
        vocabulary by the first name of each class, as in evaluation.

        Args:
            words: "dog|puppy, cat", a file or a built-in name, see `read_words`; a list, see `own_words`; or a
                vocabulary.

        Raises:
            InputError: no words, an empty one, one word twice, or one that CLIP cannot read whole.
        """
        words = as_vocabulary(words)
        seen = None if self.trained is None else seen_in_training(words, self.trained)
        built_in = words.name in available_vocabularies()
        classes = self.model.classes_of(words, seen, all_synonyms=not built_in)
        given = self._given(words, classes)
        seen = np.ones(len(words), bool) if classes.seen is None else classes.seen
        return dataclasses.replace(given, seen=seen)

    def predict_batch(
        self, images: Sequence[np.ndarray], given: GivenWords | None = None
    ) -> list[Detections]:
        given = given or self.require_words()
        samples = self._samples(images)
        looks = self._look(images, samples, given)
        outputs = self.model(samples, classes=given.classes)
        results = []
        for image, output, look in zip(images, outputs, looks, strict=True):
            instances = output["instances"].to("cpu")
            if look.nothing:
                instances = instances[:0]
            detections = Detections(
                boxes=instances.pred_boxes.tensor.float().numpy(),
                scores=instances.scores.float().numpy(),
                labels=instances.pred_classes.numpy(),
                masks=instances.pred_masks.numpy() if self.has_masks else None,
                names=given.names,
                category_ids=given.category_ids,
                seen=given.seen,
                image=image,
                **look.fields(),
            )
            results.append(detections)
        return results


PREDICTORS: dict[str, type[ImagePredictor[Any]]] = {
    predictor.task: predictor
    for predictor in (SemanticPredictor, PanopticPredictor, DetectionPredictor)
}
