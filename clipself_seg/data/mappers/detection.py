"""Mappers for detection: record -> the image as bytes and, in training, its objects.

The official pixels: large-scale jitter with OpenCV's bilinear resizing. Nothing is normalised or padded
here: the model does that. Legend: S side of the square that an image fits into, h w pixels of the sample,
n objects. Boxes are XYXY in pixels, float32 as in the official code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image

from clipself_seg.config.relations import IMAGES, require_valid
from clipself_seg.data.annotations import Record
from clipself_seg.data.images import MAX_PIXELS, read_image
from clipself_seg.data.mappers import samples
from clipself_seg.data.masks import object_mask, tight_box

Resize = Literal["opencv", "pillow"]

MIN_EXTENT = 0.01  # pixels; an object that is not wider and higher is no object
FLIPPED = 0.5  # fraction of the samples


class Window(NamedTuple):
    """Part of a resized image that a sample shows.

    Attributes:
        original: (height, width) of the image in its file, in pixels.
        size: (height, width) of the whole resized image.
        corner: (y, x) of the first pixel of it that the sample shows.
        shape: (h, w) of the sample.
    """

    original: tuple[int, int]
    size: tuple[int, int]
    corner: tuple[int, int]
    shape: tuple[int, int]

    def of(self, image: np.ndarray) -> np.ndarray:
        """The part of a resized image that the window shows (height, width, ...)."""
        (y, x), (height, width) = self.corner, self.shape
        return image[y : y + height, x : x + width]


class Objects(NamedTuple):
    """Objects of an image.

    Attributes:
        boxes: (n, 4) float32.
        labels: (n,) int64.
        masks: (n, h, w) bool, or None where none are made.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None

    def where(self, kept: np.ndarray) -> Objects:
        """Objects that a mask (n,) bool chooses."""
        masks = None if self.masks is None else self.masks[kept]
        return Objects(self.boxes[kept], self.labels[kept], masks)


def evaluation_size(height: int, width: int, side: int, resize: Resize) -> tuple[int, int]:
    """Size (height, width) of an image for testing, whose longer side becomes `side` pixels."""
    if resize == "pillow":
        size = T.ResizeShortestEdge.get_output_shape(height, width, side, side)
        return max(1, size[0]), max(1, size[1])
    return _rounded(height, width, side)


def training_size(
    height: int, width: int, side: int, scale: float, resize: Resize
) -> tuple[int, int]:
    """Size (height, width) of an image for training, whose longer side becomes `side` x `scale` pixels.

    The official code makes that a whole number first, and Detectron2's `ResizeScale` does not.
    """
    if resize == "opencv":
        return _rounded(height, width, int(side * scale))
    factor = side * scale / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _rounded(height: int, width: int, longest: int) -> tuple[int, int]:
    factor = longest / max(height, width)
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_image(image: np.ndarray, size: tuple[int, int], resize: Resize) -> np.ndarray:
    """Resizes an image bilinearly: "opencv" without antialiasing, "pillow" with it.

    Args:
        image: uint8 (H, W, 3).
        size: (height, width) of the result, in pixels.
        resize: which of the two.
    """
    if resize == "opencv":
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    resized: np.ndarray = T.ResizeTransform(*image.shape[:2], *size).apply_image(image)
    return resized


def nearest_indices(length: int, new_length: int, resize: Resize) -> np.ndarray:
    """Rows (or columns) of a mask that its resizing to the nearest neighbour takes, (new_length,)."""
    numbers = np.arange(length, dtype=np.int32)[None]
    size = (new_length, 1)
    if resize == "opencv":
        return cv2.resize(numbers, size, interpolation=cv2.INTER_NEAREST)[0]
    return np.asarray(Image.fromarray(numbers).resize(size, Image.Resampling.NEAREST))[0]


class DetectionTrainMapper(samples.Configurable):
    """Mapper from a record and a draw number to an augmented image with its objects.

    The image is resized at random, cut to S at most, and flipped in half of the draws. A sample depends on
    the seed and the draw number alone.

    Attributes:
        seed: seed of the run.
        side: S in pixels.
        scales: smallest and largest length of the resized longer side, as a factor of S.
        resize: "opencv" is official; "pillow" antialiases and rounds as Detectron2 does.
        masks: masks are made, of which the boxes are then made anew.
        max_pixels: largest number of pixels of an image that is decoded.
    """

    seed: int
    side: int
    scales: tuple[float, float] = (0.1, 2.0)
    resize: Resize = "opencv"
    masks: bool = False
    max_pixels: int = MAX_PIXELS

    @classmethod
    def from_config(cls, cfg: CfgNode, *, seed: int, masks: bool = False) -> dict[str, Any]:
        """Reads INPUT.DETECTION; the seed, and whether the model has masks, come from the caller."""
        require_valid(cfg, IMAGES, all_keys=True)
        detection = cfg.INPUT.DETECTION
        return dict(
            seed=seed,
            side=detection.SIDE,
            scales=(detection.MIN_SCALE, detection.MAX_SCALE),
            resize=detection.RESIZE,
            masks=masks,
            max_pixels=cfg.INPUT.MAX_PIXELS,
        )

    def __call__(self, record: Record, draw: int) -> samples.Sample | None:
        """Makes the sample of one draw.

        Args:
            record: record of `datasets.records.detection_records`, with masks where they are made.
            draw: number of this draw in the run, at least 0.

        Returns:
            "file_name", "image_id", "image" uint8 (3, h, w) RGB, "boxes" float32 (n, 4), "labels" int64
            (n,), "draw", the number of the draw, which a model's own random choices for the image follow
            from, and if masks are made "masks" bool (n, h, w); n may be 0. None if all objects that are
            left are thinner than `MIN_EXTENT`: the official code then takes another image.

        Raises:
            InputError: the image cannot be read or has another size than stated, or a mask is broken.
        """
        image = read_image(record["file_name"], samples.stated_size(record), self.max_pixels)
        rng = np.random.default_rng((self.seed, draw))
        window = self._draw_window(rng, *image.shape[:2])
        objects = self._objects(record, window)
        wide = (objects.boxes[:, 2:] - objects.boxes[:, :2] > MIN_EXTENT).all(axis=1)
        if len(wide) and not wide.any():
            return None
        objects = objects.where(wide)
        pixels = window.of(resize_image(image, window.size, self.resize))
        if rng.random() < FLIPPED:
            pixels = pixels[:, ::-1]
            objects = _flipped(objects, window.shape[1])
        sample = samples.image_sample(record, pixels) | {
            "boxes": torch.from_numpy(objects.boxes),
            "labels": torch.from_numpy(objects.labels),
            "draw": draw,
        }
        if objects.masks is not None:
            sample["masks"] = torch.from_numpy(np.ascontiguousarray(objects.masks))
        return sample

    def _draw_window(self, rng: np.random.Generator, height: int, width: int) -> Window:
        size = training_size(height, width, self.side, rng.uniform(*self.scales), self.resize)
        shape = min(size[0], self.side), min(size[1], self.side)
        y = int(rng.integers(size[0] - shape[0] + 1))
        x = int(rng.integers(size[1] - shape[1] + 1))
        return Window((height, width), size, (y, x), shape)

    def _objects(self, record: Record, window: Window) -> Objects:
        """Objects that a window shows; a box made of an empty mask is 0, 0, 0, 0."""
        entries = record["annotations"]
        boxes = np.array([entry["bbox"] for entry in entries], np.float32).reshape(-1, 4)
        labels = np.array([entry["label"] for entry in entries], np.int64)
        boxes, shown = _boxes_in(window, boxes)
        objects = Objects(boxes[shown], labels[shown], None)
        if not self.masks:
            return objects
        masks = self._masks_in(window, record, np.flatnonzero(shown))
        return objects._replace(boxes=mask_boxes(masks), masks=masks)

    def _masks_in(self, window: Window, record: Record, numbers: np.ndarray) -> np.ndarray:
        """Masks (n, h, w) of some objects, resized to the nearest neighbour and cut."""
        (height, width), (y, x), (h, w) = window.original, window.corner, window.shape
        rows = nearest_indices(height, window.size[0], self.resize)[y : y + h]
        columns = nearest_indices(width, window.size[1], self.resize)[x : x + w]
        masks = np.zeros((len(numbers), h, w), dtype=bool)
        for mask, number in zip(masks, numbers.tolist()):
            segmentation = record["annotations"][number]["segmentation"]
            whole = object_mask(segmentation, height, width, record["file_name"])
            mask[:] = whole[np.ix_(rows, columns)]
        return masks


def _boxes_in(window: Window, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) of an image as its window shows them, and which of them it shows, (n,) bool."""
    (height, width), (new_height, new_width), (y, x), (h, w) = window
    factors = np.array([new_width / width, new_height / height] * 2, np.float32)
    resized = np.clip(boxes * factors, 0, np.array([new_width, new_height] * 2, np.float32))
    cut = np.clip(resized - np.array([x, y] * 2, np.float32), 0, np.array([w, h] * 2, np.float32))
    return cut, np.all(cut[:, 2:] > cut[:, :2], axis=1)


def mask_boxes(masks: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Smallest boxes (n, 4) float32 around masks (n, h, w), 0, 0, 0, 0 around one without pixels."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks):
        if mask.any():
            box[:] = tight_box(mask)
    return boxes


def _flipped(objects: Objects, width: int) -> Objects:
    boxes = objects.boxes.copy()
    boxes[:, [0, 2]] = width - objects.boxes[:, [2, 0]]
    masks = None if objects.masks is None else objects.masks[..., ::-1]
    return objects._replace(boxes=boxes, masks=masks)


class DetectionTestMapper(samples.Configurable):
    """Mapper from a record to the image at the size of evaluation; evaluators read ground truth.

    Attributes:
        side: length of the longer side in pixels.
        resize: as for training.
        max_pixels: largest number of pixels of an image that is decoded.
    """

    side: int
    resize: Resize = "opencv"
    max_pixels: int = MAX_PIXELS

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads INPUT.DETECTION and MAX_PIXELS."""
        require_valid(cfg, IMAGES, all_keys=True)
        detection = cfg.INPUT.DETECTION
        return dict(side=detection.SIDE, resize=detection.RESIZE, max_pixels=cfg.INPUT.MAX_PIXELS)

    def size_rule(self) -> str:
        """The size of images in words, for the protocol of an evaluation."""
        return f"long side {self.side} px ({self.resize})"

    def __call__(self, record: Record) -> samples.Sample:
        """Makes the sample of one image.

        Args:
            record: record with "file_name", "image_id" and, where they are known, "height" and "width".

        Returns:
            "file_name", "image_id", "image" uint8 (3, h, w) RGB, "height" and "width" of the image before
            resizing, in pixels.

        Raises:
            InputError: the image cannot be read, or has another size than stated.
        """
        image = read_image(record["file_name"], samples.stated_size(record), self.max_pixels)
        identity = {"file_name": record["file_name"], "image_id": record["image_id"]}
        return identity | self.resized(image)

    def resized(self, image: np.ndarray) -> samples.Sample:
        """The sample of an image (H, W, 3) uint8 RGB without a record: what says which one it is, is missing."""
        height, width = image.shape[:2]
        size = evaluation_size(height, width, self.side, self.resize)
        return {
            "image": samples.chw(resize_image(image, size, self.resize)),
            "height": height,
            "width": width,
        }
