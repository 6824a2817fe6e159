"""Semantic segmentation of images with your own class names.

    model = clipself_seg.load("catseg-base")
    model.set_vocabulary("dog|puppy, grass, sky", background="background")
    result = model("photo.jpg")
    result.labels, result.names, result.fractions()

Shapes: H, W pixels of the image as it is meant to be seen, N names.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from PIL import Image
from torch import Tensor, nn

from clipself_seg.data.mappers.detection import mask_boxes
from clipself_seg.data.mappers.sem_seg import SemSegTestMapper
from clipself_seg.data.vocabulary import Vocabulary, Words
from clipself_seg.errors import InputError
from clipself_seg.models import CATSeg, ZeroShotSegmenter
from clipself_seg.prediction.predictor import GivenImage, GivenImages, ImagePredictor, Look
from clipself_seg.prediction.regions import (
    MapMasks,
    Region,
    RegionResult,
    Regions,
    colours_of,
    package,
)

logger = logging.getLogger(__name__)

THRESHOLD = 0.5  # below it every word is more likely to be absent from a pixel than there


@dataclasses.dataclass(frozen=True, eq=False)  # arrays are neither equal nor not
class Segmentation(RegionResult):
    """Semantic segmentation of one image.

    Attributes:
        labels: (H, W), positions in `names`; uint8, or uint16 for more than 255 names.
        scores: (N, H, W) float32 in [0, 1] if they were asked for; `labels` is where they are
            highest. CAT-Seg's are probabilities by themselves, so that they do not add up to 1.
        class_scores: (N,) in [0, 1], mean score of the pixels of each name; 0 where it has none.
        background: position of the background in `names`, or None. A name that is none of the vocabulary's classes
            has no entry in `category_ids`.
    """

    labels: np.ndarray
    scores: np.ndarray | None = None
    _: dataclasses.KW_ONLY
    class_scores: np.ndarray
    background: int | None

    def fractions(self) -> dict[str, float]:
        """Fraction of the pixels of each class in the image, the largest first."""
        counts, order = self._counts()
        return {self.names[i]: float(counts[i] / self.labels.size) for i in order}

    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of each name, and the names that have some, the largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
        order = np.argsort(-counts, kind="stable")
        return counts, order[counts[order] > 0]

    def streamed_regions(self) -> Regions:
        """All pixels of a class as one region, the largest first; the background is none."""
        order = self._counts()[1]
        present = order if self.background is None else order[order != self.background]
        masks = MapMasks(self.labels, present)
        return Regions(mask_boxes(masks), present, self.class_scores[present], masks)

    def numbered(self) -> Iterator[Region]:
        """All pixels of a class as one region, which has its label for a number; the background is none."""
        for label in np.unique(self.labels).tolist():
            if label != self.background:
                yield Region(label, label, self.labels == label, instance=False)

    def overlay(self, legend: bool = True, enlarge: bool = True) -> Image.Image:
        """The image, tinted by class, with names.

        Args:
            legend: draw a legend below.
            enlarge: enlarge a small image, so that there is room for names.
        """
        from clipself_seg.visualization.overlays import label_overlay  # 0.3 s of matplotlib

        colours = colours_of(self.names)
        return label_overlay(self.image, self.labels, self.names, colours, legend, enlarge)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Entries of COCO's results format, one for each class in the image: "category_id", "segmentation" (run-length
        encoding) as COCO-stuff has it, and "score". With a "bbox", pycocotools' `loadRes` would take its area.

        Args:
            image_id: id of the image in its data set; every image needs another.
        """
        entries = self.coco_results(image_id)
        for entry in entries:
            del entry["bbox"]
        return entries

    def to_fiftyone(self) -> Any:
        """`fiftyone.Segmentation`; `dict(enumerate(result.names, 1))` are its mask targets, 0 is the background,
        which FiftyOne does not draw.

        Raises:
            MissingPackage: fiftyone is not installed.
        """
        fiftyone = package("fiftyone")
        mask = self.labels + 1
        if self.background is not None:
            mask[self.labels == self.background] = 0
        return fiftyone.Segmentation(mask=mask)


class _Labels(NamedTuple):
    """How the scores of the model's classes become those of the labels.

    Attributes:
        names: of the N labels.
        of_class: label of every class of the model.
        background: label, or None.
        threshold: score that the background has everywhere.
    """

    names: tuple[str, ...] = ()
    of_class: Tensor = torch.zeros(0, dtype=torch.int64)
    background: int | None = None
    threshold: float = 0.0


class Predictor(ImagePredictor[Segmentation]):
    """A model with a vocabulary; calling it with an image gives a `Segmentation`."""

    task = "semantic"
    model: CATSeg | ZeroShotSegmenter
    mapper: SemSegTestMapper

    @configurable
    def __init__(
        self,
        *,
        model: CATSeg | ZeroShotSegmenter,
        mapper: SemSegTestMapper,
        threshold: float = THRESHOLD,
        **common: Any,
    ) -> None:
        """`Predictor(cfg)` builds the configured model with its weights.

        Args:
            model, mapper, common: see `ImagePredictor`.
            threshold: score that a class has to reach to win against a background that has no words, where
                `set_vocabulary` is given none.
        """
        super().__init__(model=model, mapper=mapper, **common)
        self.default_threshold = threshold
        self._labels = _Labels()

    @classmethod
    def from_config(cls, cfg: CfgNode, *, model: nn.Module | None = None) -> dict[str, Any]:
        """Reads what the model and `SemSegTestMapper` do, and ``TEST.BACKGROUND.THRESHOLD``.

        Raises:
            InputError: weights that do not fit.
        """
        return super().from_config(cfg, model=model) | {
            "mapper": SemSegTestMapper(cfg),
            "threshold": cfg.TEST.BACKGROUND.THRESHOLD or THRESHOLD,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """What labels mean, the background among them; empty before `set_vocabulary`."""
        return self._labels.names

    @property
    def background(self) -> int | None:
        """Label of the background, if there is one."""
        return self._labels.background

    @property
    def threshold(self) -> float:
        """Score that a class has to reach to win against the background."""
        return self._labels.threshold

    def set_vocabulary(
        self,
        words: Words,
        background: str | None = None,
        threshold: float | None = None,
    ) -> None:
        """Say which classes to look for, until the next call.

        Every synonym of your own class names counts (CAT-Seg averages their embeddings); a built-in
        vocabulary is read as the model's key SYNONYMS says, as in evaluation.

        Args:
            words: "dog|puppy, grass", a file or a built-in name, a list; or a
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
        words = Vocabulary.of(words)
        entries, names = list(words.classes), list(words.first_names)
        place: int | None = None
        if background is not None:
            name, *others = Vocabulary.of([background], origin="the background").classes[0].names
            place = _background_class(name, others, words)
            if place is None:
                place = len(names)
                names.append(name)
            entries += Vocabulary.of(others).classes if others else ()
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
        built_in = words.name in Vocabulary.available()
        # Own words count with every synonym; those of a benchmark as the model was built to read them.
        self.model.set_vocabulary(
            dataclasses.replace(words, classes=tuple(entries)),
            all_synonyms=None if built_in else True,
        )
        extra = [place] * (len(entries) - len(words))
        of_class = torch.tensor([*range(len(words)), *extra], device=self.model.device)
        self._labels = _Labels(tuple(names), of_class, place, threshold or 0.0)
        self._set_classes(words, entries[len(words) :], background=background, threshold=threshold)

    @overload
    def predict(
        self,
        image: GivenImage,
        words: Words | None = None,
        *,
        scores: bool = False,
        batch_size: int = 1,
    ) -> Segmentation: ...

    @overload
    def predict(
        self,
        image: GivenImages,
        words: Words | None = None,
        *,
        scores: bool = False,
        batch_size: int = 1,
    ) -> list[Segmentation]: ...

    def predict(
        self,
        image: GivenImage | GivenImages,
        words: Words | None = None,
        *,
        scores: bool = False,
        batch_size: int = 1,
    ) -> Segmentation | list[Segmentation]:
        """Segment an image, or each of a list.

        Args:
            image: array (H, W, 3) uint8 RGB, PIL image, path, or http(s) address, see `rgb_image`; or a list or
                tuple of them.
            words: set the vocabulary as `set_vocabulary(words)` does; None for the one that is set.
            scores: keep the scores, which take 4 N H W bytes; else memory does not grow with N.
            batch_size: images of a list that are read and given to the model at once. On a CPU it takes them
                one after another, so that results do not depend on it, and are not made faster by it; on a
                GPU as many together as memory allows, on which the last digits may depend.

        Raises:
            InputError: an image cannot be read, or is not of that form; of a list its index is named.
        """
        predict_batch = functools.partial(self.predict_batch, scores=scores)
        return self._predict_in_batches(image, words, batch_size, predict_batch)

    __call__ = predict

    def predict_batch(
        self, images: Sequence[np.ndarray], scores: bool = False
    ) -> list[Segmentation]:
        self.warning_of(images)
        samples = [self.mapper.resized(image) for image in images]
        place, of_class = self.background, self._labels.of_class.tolist()
        if self.absent and self.absent.what == "drop" and place is None:
            raise InputError(
                "absent words are dropped, and pixels of none are the background's: name one, as in background"
            )
        always = [k for k, label in enumerate(of_class) if label == place]
        looks = self._look(images, samples, always)
        outputs = self.model(samples, output="scores" if scores else "labels")
        return [
            self._segmentation(output, image, scores, look)
            for output, image, look in zip(outputs, images, looks, strict=True)
        ]

    def _segmentation(
        self, outputs: dict[str, Tensor], image: np.ndarray, scores: bool, look: Look
    ) -> Segmentation:
        labels_of = self._labels
        maps = None
        if scores:
            maps = _label_scores(outputs["sem_seg"], labels_of)
            labels, best = maps.argmax(dim=0), maps.amax(dim=0)
        else:
            labels = _label_map(outputs, labels_of)
            best = outputs["sem_seg_best"].clamp(min=labels_of.threshold)
        count = len(labels_of.names)
        if look.nothing and labels_of.background is not None:
            labels = torch.full_like(labels, labels_of.background)
        positions = labels.cpu().numpy().astype(label_type(count))
        flat = positions.ravel()
        pixels = np.bincount(flat, minlength=count)
        sums = np.bincount(flat, best.cpu().numpy().ravel(), minlength=count)
        return Segmentation(
            labels=positions,
            names=labels_of.names,
            scores=None if maps is None else maps.cpu().numpy(),
            class_scores=sums / np.maximum(pixels, 1),
            category_ids=self.category_ids,
            background=labels_of.background,
            presence=look.presence,
            absent=look.absent,
            image=image,
        )


def label_type(count: int) -> type[np.unsignedinteger]:
    """The smallest type for labels of so many names that leaves its highest value free."""
    return np.uint8 if count <= 255 else np.uint16


def _background_class(name: str, others: Sequence[str], words: Vocabulary) -> int | None:
    """The class that is called like the background, whatever case, if there is one.

    Raises:
        InputError: the background has a word that stands in the vocabulary for something else.
    """
    called = [class_name.strip().casefold() for class_name in words.first_names]
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


def _label_map(outputs: dict[str, Tensor], labels_of: _Labels) -> Tensor:
    """(H, W) from the model's best class of every pixel and its score."""
    labels = labels_of.of_class[outputs["sem_seg_labels"]]
    if labels_of.background is None:
        return labels
    return labels.masked_fill(outputs["sem_seg_best"] < labels_of.threshold, labels_of.background)


def _label_scores(scores: Tensor, labels_of: _Labels) -> Tensor:
    """(N, H, W) from the model's: the background's is that of its best word or the threshold."""
    if labels_of.background is None:
        return scores
    kept = scores.new_zeros(len(labels_of.names), *scores.shape[1:])
    kept[labels_of.background] = labels_of.threshold
    for label, class_scores in zip(labels_of.of_class.tolist(), scores):
        kept[label] = torch.maximum(kept[label], class_scores)
    return kept
