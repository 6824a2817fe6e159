"""Regions of one image, each with class, score, box and mask, and what other packages make of them.

supervision and fiftyone are imported where their types are asked for: nothing here needs them.

Shapes: n regions, K classes, H, W pixels of the image.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipself_seg.data.images import pixel_corners
from clipself_seg.data.masks import encode_masks
from clipself_seg.errors import of_extra
from clipself_seg.evaluation.coco_objects import ImageDetections, coco_results
from clipself_seg.visualization.colours import class_colours


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


class Region(NamedTuple):
    """A region of an image, as files number it.

    Attributes:
        number: its number among those of the image.
        label: of its class, in [0, K).
        mask: (H, W) bool, or None for a box alone.
        instance: whether it is one object, however many parts it has.
        box: (4,) XYXY in pixels, where there may be no mask.
    """

    number: int
    label: int
    mask: np.ndarray | None
    instance: bool
    box: np.ndarray | None = None


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
class RegionResult(abc.ABC):
    """The base of predictions for one image, as regions that other packages read.

    Attributes:
        names: of the K classes.
        category_ids: those of the vocabulary, of the K classes.
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
    def numbered(self) -> Iterator[Region]:
        """The regions for files, one after the other."""

    @abc.abstractmethod
    def overlay(self, legend: bool = True, enlarge: bool = True) -> Image.Image:
        """The image with the regions and their names.

        Args:
            legend: draw a legend below.
            enlarge: enlarge a small image, so that there is room for names.
        """

    def regions(self) -> Regions:
        """The regions in the form that all results have in common."""
        regions = self.streamed_regions()
        masks = regions.masks
        return regions._replace(masks=masks.all()) if isinstance(masks, MapMasks) else regions

    def coco_results(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of COCO's results format, one a region."""
        regions = self.streamed_regions()
        masks = None if regions.masks is None else encode_masks(regions.masks)
        detections = ImageDetections(regions.boxes_xywh(), regions.scores, regions.labels, masks)
        return list(coco_results(image_id, detections, self.category_ids))

    def to_supervision(self) -> Any:
        """`supervision.Detections`, one a region, with its name in `data["class_name"]`.

        Raises:
            MissingPackage: supervision is not installed.
        """
        supervision = package("supervision")
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
        fiftyone = package("fiftyone")
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


@functools.lru_cache(maxsize=8)
def colours_of(names: tuple[str, ...]) -> np.ndarray:
    """`class_colours` of the K classes of a predictor, (K, 3) uint8, made once for all its images."""
    return class_colours(names)


def package(name: str) -> Any:
    """A package that results are converted for.

    Raises:
        MissingPackage: it is not installed.
    """
    return of_extra(name, f"to_{name}", name)
