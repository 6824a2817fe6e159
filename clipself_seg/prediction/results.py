"""Predictions for one image: what all tasks have in common, and a thin view for each task.

A prediction has regions, each with class, score, box and mask, and where its task gives every pixel a class, a label
map. supervision and fiftyone are imported where their types are asked for: nothing here needs them.

Shapes: H, W pixels of the image as it is meant to be seen, K classes, N names of labels, n regions.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipself_seg.data.images import pixel_corners
from clipself_seg.data.mappers.detection import mask_boxes
from clipself_seg.data.masks import EncodedMasks, encode_masks
from clipself_seg.errors import of_extra
from clipself_seg.evaluation.coco_objects import ImageDetections, coco_results
from clipself_seg.visualization.colours import (
    class_colours,
    colour_ids,
    segment_colours,
    segment_names,
)


class Regions(NamedTuple):
    """The n regions of an image.

    Attributes:
        boxes: (n, 4) float32, XYXY in pixels of the image.
        labels: (n,) int64, positions in the names of the classes.
        scores: (n,) in [0, 1].
        masks: (n, H, W) bool, or None for boxes alone; of `streamed_regions` a sequence of n (H, W).
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: Any

    def boxes_xywh(self) -> np.ndarray:
        """The boxes as COCO has them, (n, 4): x, y, width and height."""
        corner, opposite = self.boxes[:, :2], self.boxes[:, 2:]
        return np.concatenate([corner, opposite - corner], axis=1)


class MapMasks(Sequence[np.ndarray]):
    """Masks (H, W) bool of the regions of a map, each made when it is asked for: together they may need gigabytes."""

    def __init__(self, numbers: np.ndarray, values: np.ndarray) -> None:
        """
        Args:
            numbers: (H, W) integers.
            values: (n,), the number of each region in the map.
        """
        self.numbers = numbers
        self.values = values.astype(numbers.dtype)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        return self.numbers == self.values[index]

    def all(self) -> np.ndarray:
        """(n, H, W) bool."""
        return self.numbers == self.values[:, None, None]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)  # arrays are neither equal nor not
class Prediction(abc.ABC):
    """The base of predictions for one image.

    Attributes:
        names: of the K classes, and of a background where there is one.
        category_ids: ids of the K classes in COCO's files.
        presence: name of each word -> its presence in the image, see `prediction.presence`; None: nobody asked.
        absent: the words below the threshold of `set_absent`.
        image: (H, W, 3) uint8 RGB.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    presence: Mapping[str, float] | None = None
    absent: tuple[str, ...] = ()
    image: np.ndarray = dataclasses.field(repr=False)

    @abc.abstractmethod
    def streamed_regions(self) -> Regions:
        """`regions` for what reads one mask after the other: those of a map are made as they are asked for."""

    @abc.abstractmethod
    def overlay(self, legend: bool = True, enlarge: bool = True) -> Image.Image:
        """The image with the regions and their names.

        Args:
            legend: draw a legend below.
            enlarge: enlarge a small image, so that there is room for names.
        """

    def regions(self) -> Regions:
        """The regions in the form that all predictions have in common."""
        regions = self.streamed_regions()
        masks = regions.masks
        streamed = isinstance(masks, MapMasks | EncodedMasks)
        return regions._replace(masks=masks.all()) if streamed else regions

    def to_coco(self, image_id: int = 0) -> Any:
        """Entries of COCO's results format, one a region: "category_id", "bbox" (x, y, width, height in pixels),
        "score", and "segmentation" (run-length encoding) where there are masks.

        Args:
            image_id: id of the image in its data set; every image needs another.
        """
        regions = self.streamed_regions()
        masks = None if regions.masks is None else encode_masks(regions.masks)
        detections = ImageDetections(regions.boxes_xywh(), regions.scores, regions.labels, masks)
        return list(coco_results(image_id, detections, self.category_ids))

    def to_supervision(self) -> Any:
        """`supervision.Detections`, one a region, with its name in `data["class_name"]`.

        Raises:
            MissingPackage: supervision is not installed.
        """
        supervision = _package("supervision")
        regions = self.regions()
        names = [self.names[label] for label in regions.labels]
        return supervision.Detections(
            xyxy=regions.boxes,
            mask=regions.masks,
            confidence=np.asarray(regions.scores, np.float32),
            class_id=regions.labels,
            data={"class_name": np.array(names, dtype=str)},
        )

    def to_fiftyone(self) -> Any:
        """`fiftyone.Detections`, one a region: boxes (x, y, width, height) are relative to the image, and masks
        have the pixels of their boxes, cut as FiftyOne cuts those of COCO's files.

        Raises:
            MissingPackage: fiftyone is not installed.
        """
        fiftyone = _package("fiftyone")
        height, width = self.image.shape[:2]
        regions = self.streamed_regions()
        relative = regions.boxes.astype(np.float64) / [width, height, width, height]
        relative[:, 2:] -= relative[:, :2]
        corners = pixel_corners(regions.boxes, width, height).tolist()
        detections = []
        for index, label in enumerate(regions.labels):
            x0, y0, x1, y1 = corners[index]
            detection = fiftyone.Detection(
                label=self.names[label],
                bounding_box=relative[index].tolist(),
                confidence=float(regions.scores[index]),
                mask=None if regions.masks is None else regions.masks[index][y0:y1, x0:x1].copy(),
            )
            detections.append(detection)
        return fiftyone.Detections(detections=detections)


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation(Prediction):
    """Semantic segmentation of one image; all pixels of a class are a region, those of the background are none.

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
        """A region for each class in the image, the largest first."""
        order = self._counts()[1]
        present = order if self.background is None else order[order != self.background]
        masks = MapMasks(self.labels, present)
        return Regions(mask_boxes(masks), present, self.class_scores[present], masks)

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
        entries: list[dict[str, Any]] = super().to_coco(image_id)
        for entry in entries:
            del entry["bbox"]
        return entries

    def to_fiftyone(self) -> Any:
        """`fiftyone.Segmentation`; `dict(enumerate(result.names, 1))` are its mask targets, 0 is the background,
        which FiftyOne does not draw.

        Raises:
            MissingPackage: fiftyone is not installed.
        """
        fiftyone = _package("fiftyone")
        mask = self.labels + 1
        if self.background is not None:
            mask[self.labels == self.background] = 0
        return fiftyone.Segmentation(mask=mask)


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


class GivenRegions(NamedTuple):
    """The fate of each of the masks that somebody gave of an image, in their order.

    Attributes:
        labels: (Q,) int64, positions in the names of the classes.
        scores: (Q,) in [0, 1]; 0 of a mask without a class.
        lost: place of a mask that is in no segment -> the reason.
    """

    labels: np.ndarray
    scores: np.ndarray
    lost: Mapping[int, str]

    def regions(self, masks: np.ndarray) -> Regions:
        """The regions of masks (Q, H, W) bool that have a class; they may overlap."""
        named = self.scores > 0
        masks = masks[named]
        return Regions(mask_boxes(masks), self.labels[named], self.scores[named], masks)


@dataclasses.dataclass(frozen=True, eq=False)
class PanopticSegmentation(Prediction):
    """Panoptic segmentation of one image; its segments are the regions.

    Attributes:
        ids: (H, W) int32, 0 where there is no segment, else the id of one.
        segments: n, the largest first; their ids are 1 ... n.
        given: what became of the masks, where somebody gave them.
    """

    ids: np.ndarray
    segments: tuple[PanopticSegment, ...]
    given: GivenRegions | None = None

    @classmethod
    def of_segments(
        cls,
        ids: np.ndarray,
        segments: Sequence[Mapping[str, Any]],
        *,
        names: tuple[str, ...],
        **common: Any,
    ) -> PanopticSegmentation:
        """Measures what `panoptic_merge.merge_panoptic` gives, and counts it from the largest segment.

        Args:
            ids: (H, W), 0 where nothing is, else 1 ... n.
            segments: n, with "id", "category_id", "isthing" and "score".
            names: of the K classes.
            common: the other attributes of `Prediction`.
        """
        from scipy import ndimage  # half a second

        areas = np.bincount(ids.ravel(), minlength=len(segments) + 1)
        order = sorted(segments, key=lambda segment: -int(areas[segment["id"]]))
        number = np.zeros(len(segments) + 1, np.int32)
        number[[segment["id"] for segment in order]] = np.arange(1, len(order) + 1)
        places = ndimage.find_objects(ids.astype(np.int32), max_label=len(segments))
        measured = list[PanopticSegment]()
        for segment in order:
            rows, columns = places[segment["id"] - 1]
            left, top = columns.start, rows.start
            measured.append(
                PanopticSegment(
                    id=len(measured) + 1,
                    label=segment["category_id"],
                    name=names[segment["category_id"]],
                    isthing=segment["isthing"],
                    area=int(areas[segment["id"]]),
                    box=(left, top, columns.stop - left, rows.stop - top),
                    score=segment["score"],
                )
            )
        return cls(number[ids], tuple(measured), names=names, **common)

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
        classes = [segment.label for segment in self.segments]
        colours = segment_colours(colours_of(self.names)[classes])
        return label_overlay(self.image, self.ids - 1, names, colours, legend, enlarge)

    def to_coco(
        self, image_id: int = 0, file_name: str | None = None
    ) -> tuple[dict[str, Any], np.ndarray]:
        """COCO's panoptic annotation, whose segments also have a "score", and the PNG that it belongs to.

        Args:
            image_id: id of the image in its data set.
            file_name: name of the PNG; by default that of COCO's files, the id with twelve digits.

        Returns:
            The annotation, and the pixels (H, W, 3) uint8 of the PNG: R + 256 G + 65536 B is the id of a segment
            there, and looks like its colour on the overlay; black is no segment.
        """
        classes = [segment.label for segment in self.segments]
        colours = segment_colours(colours_of(self.names)[classes])
        infos = [
            {
                "id": number,
                "category_id": self.category_ids[segment.label],
                "area": segment.area,
                "bbox": list(segment.box),
                "iscrowd": 0,
                "score": segment.score,
            }
            for number, segment in zip(colour_ids(colours).tolist(), self.segments)
        ]
        name = f"{image_id:012d}.png" if file_name is None else file_name
        annotation = {"image_id": image_id, "file_name": name, "segments_info": infos}
        return annotation, np.concatenate([np.zeros((1, 3), np.uint8), colours])[self.ids]


@dataclasses.dataclass(frozen=True, eq=False)
class Detections(Prediction):
    """Detections in one image, the best first; each is a region.

    Attributes:
        boxes: (n, 4) float32, XYXY in pixels of the image.
        scores: (n,) float32 in [0, 1]; those of seen and of unseen classes are fused with exponents of
            their own.
        labels: (n,) int64, positions in the vocabulary.
        masks: (n, H, W) bool, of large images `EncodedMasks`; None for a model without masks.
        seen: (K,) bool, which of the classes training has shown.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | EncodedMasks | None = None
    _: dataclasses.KW_ONLY
    seen: np.ndarray

    def streamed_regions(self) -> Regions:
        """The detections."""
        return Regions(self.boxes, self.labels, self.scores, self.masks)

    def overlay(self, legend: bool = True, enlarge: bool = True) -> Image.Image:
        """The image with boxes, names, scores, and masks if there are any.

        Args:
            legend: draw a legend below.
            enlarge: enlarge a small image, so that there is room for names.
        """
        from clipself_seg.visualization.overlays import box_overlay  # 0.3 s of matplotlib

        names = [self.names[label] for label in self.labels]
        given = self.scores, names, self.seen[self.labels], self.masks
        return box_overlay(self.image, self.boxes, *given, legend, enlarge)


def require_finite(*outputs: np.ndarray) -> None:
    """Refuses outputs that are no numbers, as of float16 that overflows.

    Raises:
        FloatingPointError: one is not finite.
    """
    if not all(np.isfinite(output).all() for output in outputs):
        raise FloatingPointError(
            "the outputs are not finite: the weights or the precision (TEST.PRECISION) are at fault"
        )


def label_type(count: int) -> type[np.unsignedinteger]:
    """The smallest type for labels of so many names that leaves its highest value free."""
    return np.uint8 if count <= 255 else np.uint16


def label_image(labels: np.ndarray, names: tuple[str, ...]) -> Image.Image:
    """An image of labels (H, W), whose values they are; those of 8 bits look as the classes do on overlays."""
    image = Image.fromarray(labels)
    if labels.dtype == np.uint8:
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(names)] = colours_of(names)
        image.putpalette(colours.tobytes())
    return image


@functools.lru_cache(maxsize=8)
def colours_of(names: tuple[str, ...]) -> np.ndarray:
    """`class_colours` of the names of a predictor, (N, 3) uint8, made once for all its images."""
    return class_colours(names)


def _package(name: str) -> Any:
    """A package that predictions are converted for.

    Raises:
        MissingPackage: it is not installed.
    """
    return of_extra(name, f"to_{name}", name)
