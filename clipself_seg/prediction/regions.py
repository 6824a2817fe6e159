"""Regions of one image, each with class, score, box and mask, and what other packages make of them.

supervision and fiftyone are imported where their types are asked for: nothing here needs them.

Shapes: n regions, K classes, H, W pixels of the image.
"""

from __future__ import annotations

import abc
import functools
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clipself_seg.data.images import pixel_corners
from clipself_seg.data.masks import encode_masks
from clipself_seg.errors import MissingPackage
from clipself_seg.evaluation.detection.detections import ImageDetections, coco_results
from clipself_seg.visualization.class_colours import class_colours


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


class RegionResult(abc.ABC):
    """The base of predictions for one image, as regions that other packages read.

    Attributes:
        names: of the K classes.
        image: (H, W, 3) uint8 RGB.
    """

    names: tuple[str, ...]
    image: np.ndarray

    @abc.abstractmethod
    def streamed_regions(self) -> Regions:
        """`regions` for what reads one mask after the other: those of a map are made as they are asked for."""

    def regions(self) -> Regions:
        """The regions in the form that all results have in common."""
        regions = self.streamed_regions()
        masks = regions.masks
        return regions._replace(masks=masks.all()) if isinstance(masks, MapMasks) else regions

    def to_supervision(self) -> Any:
        """`supervision.Detections`, one a region.

        Raises:
            MissingPackage: supervision is not installed.
        """
        return supervision_detections(self.regions(), self.names)

    def to_fiftyone(self) -> Any:
        """`fiftyone.Detections`, one a region.

        Raises:
            MissingPackage: fiftyone is not installed.
        """
        height, width = self.image.shape[:2]
        return fiftyone_detections(self.streamed_regions(), self.names, width, height)


@functools.lru_cache(maxsize=8)
def colours_of(names: tuple[str, ...]) -> np.ndarray:
    """`class_colours` of the K classes of a predictor, (K, 3) uint8, made once for all its images."""
    return class_colours(names)


def coco_annotations(
    image_id: Any, regions: Regions, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Entries of COCO's results format, see `coco_results`.

    Args:
        image_id: id of the image in its data set.
        regions: the regions of the image.
        category_ids: category id of each of the K classes.
    """
    corner, opposite = regions.boxes[:, :2], regions.boxes[:, 2:]
    boxes = np.concatenate([corner, opposite - corner], axis=1)
    masks = None if regions.masks is None else encode_masks(regions.masks)
    detections = ImageDetections(boxes, regions.scores, regions.labels, masks)
    return list(coco_results(image_id, detections, category_ids))


def supervision_detections(regions: Regions, names: Sequence[str]) -> Any:
    """The regions as `supervision.Detections`, with the names in `data["class_name"]`.

    Args:
        regions: the regions of an image.
        names: names of the K classes.

    Raises:
        MissingPackage: supervision is not installed.
    """
    supervision = _package("supervision")
    return supervision.Detections(
        xyxy=regions.boxes,
        mask=regions.masks,
        confidence=np.asarray(regions.scores, np.float32),
        class_id=regions.labels,
        data={"class_name": np.array([names[label] for label in regions.labels], dtype=str)},
    )


def fiftyone_detections(regions: Regions, names: Sequence[str], width: int, height: int) -> Any:
    """The regions as `fiftyone.Detections`: boxes (x, y, width, height) are relative to the image, and masks
    have the pixels of their boxes, cut as FiftyOne cuts those of COCO's files.

    Args:
        regions: the regions of an image.
        names: names of the K classes.
        width: width of the image in pixels.
        height: height of the image in pixels.

    Raises:
        MissingPackage: fiftyone is not installed.
    """
    fiftyone = _package("fiftyone")
    relative = regions.boxes.astype(np.float64) / [width, height, width, height]
    relative[:, 2:] -= relative[:, :2]
    corners = pixel_corners(regions.boxes, width, height).tolist()
    detections = []
    for index, label in enumerate(regions.labels):
        x0, y0, x1, y1 = corners[index]
        detection = fiftyone.Detection(
            label=names[label],
            bounding_box=relative[index].tolist(),
            confidence=float(regions.scores[index]),
            mask=None if regions.masks is None else regions.masks[index][y0:y1, x0:x1].copy(),
        )
        detections.append(detection)
    return fiftyone.Detections(detections=detections)


def fiftyone_segmentation(labels: np.ndarray, background: int | None) -> Any:
    """A label map (H, W) as `fiftyone.Segmentation`: values are positions in the names plus 1, and the background
    is 0, which FiftyOne does not draw.

    Raises:
        MissingPackage: fiftyone is not installed.
    """
    fiftyone = _package("fiftyone")
    mask = labels + 1
    if background is not None:
        mask[labels == background] = 0
    return fiftyone.Segmentation(mask=mask)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # it is there, and something that it needs is not
            raise
        raise MissingPackage(
            f"results for {name} need the package {name}: pip install {name}"
        ) from None
