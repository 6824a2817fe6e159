"""Detections of images: kept compactly, and written as COCO's results format.

Legend: n detections, H W rows and columns of the original image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode, Instances

from clipself_seg.data.masks import encode_masks
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path

# Name of a task, in TEST.DETECTION.TASKS -> its name in pycocotools, and in results.
KINDS = {"boxes": "bbox", "masks": "segm"}


class ImageDetections(NamedTuple):
    """The n detections of an image.

    Attributes:
        boxes: (n, 4) XYWH in pixels of the original image.
        scores: (n,) of any scale.
        classes: (n,) integers in [0, K).
        masks: run-length encoding of each detection, see `encode_masks`; None for a model without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: list[dict[str, Any]] | None

    def best(self, limit: int) -> ImageDetections:
        """The detections with the highest scores, by falling score, the first of equal ones; all of them in
        their own order if they are no more than the limit."""
        if len(self.scores) <= limit:
            return self
        order = np.argsort(-self.scores, kind="stable")[:limit]
        masks = None if self.masks is None else [self.masks[index] for index in order]
        return ImageDetections(self.boxes[order], self.scores[order], self.classes[order], masks)


def image_detections(instances: Instances, *, masks: bool, source: str) -> ImageDetections:
    """Detections of an image as a model gives them.

    Args:
        instances: "pred_boxes" (XYXY in pixels of the original image), "scores", "pred_classes", and with
            `masks` "pred_masks" (n, H, W) bool.
        masks: keep masks.
        source: the image's file, for messages.

    Raises:
        InputError: masks are wanted that the model does not have.
        FloatingPointError: a score or a box is not finite.
    """
    if masks and not instances.has("pred_masks"):
        raise InputError(
            f"the detections of {source} have no masks, which TEST.DETECTION.TASKS asks for: take "
            'a model with masks, or TEST.DETECTION.TASKS ("boxes",)'
        )
    # Detectron2's own conversion, in the precision of the model: `COCOEvaluator` has the same numbers.
    boxes = BoxMode.convert(
        instances.pred_boxes.tensor.cpu().numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
    )
    scores = instances.scores.cpu().numpy()
    if not np.isfinite(scores).all() or not np.isfinite(boxes).all():
        raise FloatingPointError(
            f"the scores or boxes of {source} are not finite: the weights or the precision are at fault"
        )
    return ImageDetections(
        boxes,
        scores,
        instances.pred_classes.cpu().numpy(),
        encode_masks(instances.pred_masks.cpu().numpy()) if masks else None,
    )


def coco_results(
    image_id: Any, detections: ImageDetections, category_ids: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Entries of COCO's results format: "image_id", "category_id", "bbox" (XYWH), "score", and
    "segmentation" (run-length encoding) of detections with masks.

    Args:
        image_id: id of the image in its data set.
        detections: the detections of the image.
        category_ids: category id of each of the K classes.
    """
    boxes = detections.boxes.tolist()
    scores = detections.scores.tolist()
    for index, label in enumerate(detections.classes.tolist()):
        entry = {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": boxes[index],
            "score": scores[index],
        }
        if detections.masks is not None:
            mask = detections.masks[index]
            entry["segmentation"] = mask | {"counts": mask["counts"].decode("ascii")}
        yield entry


def write_coco_results(
    path: str | os.PathLike[str],
    images: Iterable[tuple[Any, ImageDetections]],
    category_ids: Sequence[int],
) -> None:
    """Write detections as a list in COCO's results format, atomically.

    Args:
        path: the JSON file to write.
        images: id and detections of each image.
        category_ids: category id of each of the K classes.
    """
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        # An entry at a time: those of LVIS's validation images would be gigabytes in memory.
        separator = "[\n"
        for image_id, detections in images:
            for entry in coco_results(image_id, detections, category_ids):
                file.write(separator + json.dumps(entry, allow_nan=False))
                separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")
