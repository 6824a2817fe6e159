"""Panoptic segmentation of images with your own class names.

    model = clipself_seg.load("fcclip-convnext-large")
    result = model("photo.jpg", "dog|puppy, person, grass, sky", stuff="grass, sky")
    result.ids, result.segments

Masks that somebody else made, such as SAM's, are named by CLIP alone:

    model = clipself_seg.load(config_file="panoptic/masks+openai_vitb16")
    result = model("photo.jpg", "dog, grass", stuff="grass", masks="masks/photo.json")

With opts=["MODEL.MASK_GENERATOR.OUTPUTS", "sam2"] for `load` the masks are SAM 2's, and no argument.

Shapes: H, W pixels of the image as it is meant to be seen, K classes, n segments.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import nn

from clipself_seg.data.datasets.records import train_vocabulary_name
from clipself_seg.data.datasets.table import PanopticSet
from clipself_seg.data.given_masks import given_masks
from clipself_seg.data.mappers.panoptic import PanopticTestMapper, mask_entries
from clipself_seg.data.vocabulary import (
    NamedVocabulary,
    Vocabulary,
    Words,
)
from clipself_seg.errors import InputError, nearest
from clipself_seg.models import OpenPanoptic
from clipself_seg.prediction.predictor import GivenImage, GivenImages, ImagePredictor
from clipself_seg.prediction.regions import MapMasks, Region, RegionResult, Regions, colours_of
from clipself_seg.prediction.semantic import label_type
from clipself_seg.visualization.colours import colour_ids, segment_colours, segment_names


@dataclasses.dataclass(frozen=True)
class PanopticSegment:
    """A thing, or all stuff of one class.

    Attributes:
        id: its value in the map, from 1.
        label: of its class, a position in the vocabulary.
        name: of its class.
        isthing: thing or stuff.
        area: in pixels.
        box: x, y, width and height in pixels, of the smallest box that holds it.
        score: the highest class probability of the masks that it is made of, in [0, 1].
    """

    id: int
    label: int
    name: str
    isthing: bool
    area: int
    box: tuple[int, int, int, int]
    score: float


@dataclasses.dataclass(frozen=True, eq=False)  # arrays are neither equal nor not
class PanopticSegmentation(RegionResult):
    """Panoptic segmentation of one image.

    Attributes:
        ids: (H, W) int32, 0 where there is no segment, else the id of one.
        segments: n, the largest first; their ids are 1 ... n.
    """

    ids: np.ndarray
    segments: tuple[PanopticSegment, ...]

    def streamed_regions(self) -> Regions:
        """The segments with their masks."""
        boxes = np.array([segment.box for segment in self.segments], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        numbers = np.arange(1, len(self.segments) + 1)
        return Regions(
            boxes=boxes,
            labels=np.array([segment.label for segment in self.segments], np.int64),
            scores=np.array([segment.score for segment in self.segments], np.float32),
            masks=MapMasks(self.ids, numbers),
        )

    def numbered(self) -> Iterator[Region]:
        """The segments with their ids for numbers."""
        for segment in self.segments:
            yield Region(segment.id, segment.label, self.ids == segment.id, segment.isthing)

    @property
    def labels(self) -> np.ndarray:
        """The class of every pixel, (H, W), a position in `names`; uint8, or uint16 for more than 255 names, whose
        highest value means that there is no segment."""
        kind = label_type(len(self.names))
        classes = [segment.label for segment in self.segments]
        labels: np.ndarray = np.array([np.iinfo(kind).max, *classes], kind)[self.ids]
        return labels

    def overlay(self, legend: bool = True, enlarge: bool = True) -> Image.Image:
        """The image, tinted by segment, with names.

        Args:
            legend: draw a legend below.
            enlarge: enlarge a small image, so that there is room for names.
        """
        from clipself_seg.visualization.overlays import label_overlay  # 0.3 s of matplotlib

        names = segment_names([segment.name for segment in self.segments])
        return label_overlay(self.image, self.ids - 1, names, self._colours(), legend, enlarge)

    def to_coco(
        self, image_id: int = 0, file_name: str | None = None
    ) -> tuple[dict[str, Any], np.ndarray]:
        """COCO's panoptic annotation, whose segments also have a "score", and the PNG that it belongs to.

        Args:
            image_id: id of the image in its data set.
            file_name: name of the PNG; by default that of COCO's files, the id with twelve digits.

        Returns:
            The annotation, and the pixels (H, W, 3) uint8 of the PNG, see `painted_ids`.
        """
        name = f"{image_id:012d}.png" if file_name is None else file_name
        return self.coco_annotation(image_id, name), self.painted_ids()

    def coco_annotation(self, image_id: int, file_name: str) -> dict[str, Any]:
        """COCO's panoptic annotation alone; the arguments are those of `to_coco`."""
        infos = [
            {
                "id": number,
                "category_id": self.category_ids[segment.label],
                "area": segment.area,
                "bbox": list(segment.box),
                "iscrowd": 0,
                "score": segment.score,
            }
            for number, segment in zip(colour_ids(self._colours()).tolist(), self.segments)
        ]
        return {"image_id": image_id, "file_name": file_name, "segments_info": infos}

    def painted_ids(self) -> np.ndarray:
        """Pixels of the PNG of the annotation, (H, W, 3) uint8: R + 256 G + 65536 B is the id of a segment there, and
        looks like its colour on the overlay; black is no segment."""
        painted: np.ndarray = np.concatenate([np.zeros((1, 3), np.uint8), self._colours()])[
            self.ids
        ]
        return painted

    def _colours(self) -> np.ndarray:
        """Colour of each segment, (n, 3) uint8."""
        classes = [segment.label for segment in self.segments]
        return segment_colours(colours_of(self.names)[classes])


class PanopticPredictor(ImagePredictor[PanopticSegmentation]):
    """A model with a vocabulary; calling it with an image gives a `PanopticSegmentation`.

    Attributes:
        trained: the training vocabulary; its classes are seen, the model's alpha is for them, and beta belongs to the
            others.
        vocabulary: the vocabulary, which tells things from stuff; None before `set_vocabulary`.
    """

    task = "panoptic"
    model: OpenPanoptic
    mapper: PanopticTestMapper
    trained: Vocabulary
    seen: np.ndarray = np.zeros(0, bool)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, model: nn.Module | None = None) -> dict[str, Any]:
        """Reads what `OpenPanoptic` and `PanopticTestMapper` do, TEST.TRAIN_VOCABULARY and
        DATASETS.TRAIN.

        Args:
            cfg: of an `OpenPanoptic`.

        Raises:
            InputError: weights that do not fit, or no training vocabulary.
        """
        words = Vocabulary.load(_trained_on(cfg))
        return super().from_config(cfg, model=model) | {
            "mapper": PanopticTestMapper(cfg),
            "trained": words,
        }

    def set_vocabulary(self, words: Words, stuff: Words | None = None) -> None:
        """Say which classes to look for, until the next call. Every synonym counts.

        Args:
            words: see `panoptic_words`.
            stuff: the classes among them that are stuff, in the same form; see `panoptic_words`.

        Raises:
            InputError: as `panoptic_words`.
        """
        words = panoptic_words(words, stuff)
        seen = words.seen_in(self.trained, exact=True)
        self.model.set_vocabulary(words, seen)
        self.seen = seen
        self._set_classes(words)

    @overload
    def predict(
        self,
        image: GivenImage,
        words: Words | None = None,
        *,
        stuff: Words | None = None,
        masks: object = None,
        batch_size: int = 1,
    ) -> PanopticSegmentation: ...

    @overload
    def predict(
        self,
        image: GivenImages,
        words: Words | None = None,
        *,
        stuff: Words | None = None,
        masks: Sequence[object] | None = None,
        batch_size: int = 1,
    ) -> list[PanopticSegmentation]: ...

    def predict(
        self,
        image: GivenImage | GivenImages,
        words: Words | None = None,
        *,
        stuff: Words | None = None,
        masks: Any = None,
        batch_size: int = 1,
    ) -> PanopticSegmentation | list[PanopticSegmentation]:
        """Segment an image, or each of a list.

        Args:
            image: array (H, W, 3) uint8 RGB, PIL image, path, or http(s) address, see `rgb_image`; or a list or
                tuple of them.
            words: set the vocabulary as `set_vocabulary(words, stuff)` does; None for the one that is set.
            stuff: those of the words that are stuff, see `panoptic_words`.
            masks: for a model of MODEL.MASK_GENERATOR.SOURCE masks, and only for it: those of the image, in one of the
                forms of `given_masks`; of a list of images a list of them. None where MODEL.MASK_GENERATOR.OUTPUTS
                is a model that finds them.
            batch_size: images of a list that are read and given to the model at once. On a CPU it takes them
                one after another, so that results do not depend on it, and are not made faster by it; on a
                GPU those of one size after padding together, on which the last digits may depend.

        Raises:
            InputError: an image cannot be read, or is not of that form; of a list its index is named. Masks that
                do not fit, are missing, or are given to a model that generates its own.
        """
        listed = image if isinstance(image, list | tuple) else None
        if masks is not None and self.model.masks.generates:
            raise InputError(
                "masks are given to a model that generates its own: take MODEL.MASK_GENERATOR.SOURCE masks, as "
                "configs/panoptic/masks+openai_vitb16.yaml has it"
            )
        if masks is not None and listed is not None and len(masks) != len(listed):
            raise InputError(
                f"{len(listed)} images and {len(masks)} masks: give each image its own"
            )
        remaining = iter([masks] if listed is None else () if masks is None else masks)

        def predict_batch(images: list[np.ndarray]) -> list[PanopticSegmentation]:
            return self.predict_batch(images, list(itertools.islice(remaining, len(images))))

        if words is not None or stuff is not None:
            words = panoptic_words(self.require_vocabulary() if words is None else words, stuff)
        return self._predict_in_batches(image, words, batch_size, predict_batch)

    __call__ = predict

    def predict_batch(
        self, images: Sequence[np.ndarray], masks: Sequence[object] = ()
    ) -> list[PanopticSegmentation]:
        self.warning_of(images)
        words = self.require_vocabulary()
        samples = [self.mapper.resized(image) for image in images]
        for image, sample, image_masks in zip(images, samples, masks):
            if image_masks is not None:
                size = (image.shape[0], image.shape[1])
                sample |= mask_entries(given_masks(image_masks, size))
        # Instances and class maps, which nobody asks for here, cost time and memory.
        fusion = self.model.fusion.returned(("panoptic",))
        looks = self._look(images, samples)
        outputs = self.model(samples, fusions={"own": fusion})
        results = []
        for image, output, look in zip(images, outputs, looks, strict=True):
            ids, segments = output["fusions"]["own"]["panoptic_seg"]
            if look.nothing:
                ids, segments = torch.zeros_like(ids), []
            result = segmentation_of(ids.cpu().numpy(), segments, words, image)
            looked = dataclasses.replace(result, presence=look.presence, absent=look.absent)
            results.append(looked)
        return results


def panoptic_words(words: Words, stuff: Words | None = None) -> Vocabulary:
    """A vocabulary that tells things from stuff.

    Args:
        words: "dog|puppy, grass", a file or a built-in name, a list; or a
            vocabulary.
        stuff: those that are stuff, in the same forms, or "" for none; all others are things.
            None: as the vocabulary says; of one's own words all are things.

    Raises:
        InputError: no words, an empty one, or one word twice; stuff that is none of them; a
            built-in vocabulary that does not tell things from stuff.
    """
    words = Vocabulary.of(words)
    if stuff is not None:
        return with_stuff(words, Vocabulary.of(stuff) if stuff else None)
    built_in = words.name in Vocabulary.available()
    if built_in and words.classes[0].isthing is None:
        telling = [
            name
            for name in Vocabulary.available()
            if Vocabulary.load(name).classes[0].isthing is not None
        ]
        raise InputError(
            f'vocabulary "{words.name}" does not tell things from stuff: say which words are stuff, '
            f"or take one of {', '.join(telling)}"
        )
    return words


def with_stuff(words: Vocabulary, stuff: Vocabulary | None) -> Vocabulary:
    """A vocabulary in which some classes are stuff and the others things.

    Args:
        words: K classes.
        stuff: words of those that are stuff, any synonym in any case; None for none.

    Raises:
        InputError: a word that no class has.
    """
    named = {} if stuff is None else {n.casefold(): n for c in stuff.classes for n in c.names}
    keys = [{name.strip().casefold() for name in entry.names} for entry in words.classes]
    every = set().union(*keys)
    for key, name in named.items():
        if key not in every:
            others = nearest(name, {n for entry in words.classes for n in entry.names})
            raise InputError(f'stuff "{name}" is not in the vocabulary; {others}')
    classes = tuple(
        dataclasses.replace(entry, isthing=known.isdisjoint(named))
        for entry, known in zip(words.classes, keys)
    )
    return dataclasses.replace(words, classes=classes)


def segmentation_of(
    ids: np.ndarray, segments: Sequence[dict[str, Any]], words: Vocabulary, image: np.ndarray
) -> PanopticSegmentation:
    """What `panoptic_merge.merge_panoptic` gives, measured, the largest segment first.

    Args:
        ids: (H, W), 0 where nothing is, else 1 ... n.
        segments: n, with "id", "category_id", "isthing" and "score".
        words: K classes.
        image: (H, W, 3) uint8 RGB, what was segmented.
    """
    names = words.first_names
    areas = np.bincount(ids.ravel(), minlength=len(segments) + 1)
    order = sorted(segments, key=lambda segment: -int(areas[segment["id"]]))
    number = np.zeros(len(segments) + 1, np.int32)
    number[[segment["id"] for segment in order]] = np.arange(1, len(order) + 1)
    from scipy import ndimage

    places = ndimage.find_objects(ids.astype(np.int32), max_label=len(segments))
    ordered = list[PanopticSegment]()
    for segment in order:
        rows, columns = places[segment["id"] - 1]
        box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        label, isthing = segment["category_id"], segment["isthing"]
        measured = int(areas[segment["id"]]), box, segment["score"]
        ordered.append(PanopticSegment(len(ordered) + 1, label, names[label], isthing, *measured))
    return PanopticSegmentation(
        number[ids],
        tuple(ordered),
        names=tuple(names),
        category_ids=tuple(entry.dataset_id for entry in words.classes),
        image=image,
    )


def _trained_on(cfg: CfgNode) -> NamedVocabulary:
    """The training vocabulary, by the rule of evaluation."""
    if not (words := train_vocabulary_name(cfg, PanopticSet)):
        raise InputError(
            "DATASETS.TRAIN is empty: which classes are seen? Name the training vocabulary, such as "
            "openseg_coco_panoptic_133 (TEST.TRAIN_VOCABULARY)"
        )
    return words
