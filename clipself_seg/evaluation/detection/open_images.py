"""Pairs predictions and true objects of each image, as Open AP of detections needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

from clipself_seg.evaluation.detection.detections import ImageDetections
from clipself_seg.evaluation.detection.ground_truth import DetectionGroundTruth
from clipself_seg.evaluation.detection.numbers import LVIS_LIMIT
from clipself_seg.evaluation.open_ap import OpenImage, overlaps

Truth = tuple[int, Mapping[str, Any]]  # class of an object, and its entry


def detection_images(
    truth: DetectionGroundTruth, predicted: Mapping[Any, ImageDetections], kind: str
) -> Iterator[OpenImage]:
    """The images of a data set, one after the other.

    If the data set is federated, as LVIS's, the best 300 detections of an image count, and one that matches nothing is
    false only where its class is said not to be in the image, or is annotated in full.

    Args:
        truth: objects of the K classes.
        predicted: image id -> detections, for every image.
        kind: "bbox", or "segm" for masks.
    """
    by_image: list[list[Truth]] = [[] for _ in truth.image_ids]
    for label, images in enumerate(truth.objects):
        for number, entries in images.items():
            by_image[number] += [(label, entry) for entry in entries]
    for number, (image_id, objects) in enumerate(zip(truth.image_ids, by_image)):
        own = predicted[image_id]
        blamed = np.ones(len(own.classes), dtype=bool)
        if truth.federated is not None:
            own = own.best(LVIS_LIMIT)
            blamed = _blamed(truth, number, own, kind)
        yield OpenImage(
            own.classes.astype(np.int64),
            own.scores.astype(np.float64),
            blamed,
            np.array([label for label, _ in objects], dtype=np.int64),
            np.array([bool(entry["ignore"]) for _, entry in objects], dtype=bool),
            np.array([bool(entry["iscrowd"]) for _, entry in objects], dtype=bool),
            overlaps(*_geometry(own, [entry for _, entry in objects], kind)),
        )


def _blamed(
    truth: DetectionGroundTruth, number: int, own: ImageDetections, kind: str
) -> np.ndarray:
    """Bool (d,): detections of an image that are false by LVIS's rules where they match nothing."""
    assert truth.federated is not None
    negatives, not_exhaustive = truth.federated
    areas = own.boxes[:, 2] * own.boxes[:, 3]
    if kind == "segm":
        assert own.masks is not None
        areas = rle.area(own.masks) if own.masks else np.zeros(0)
    blamed = [
        (number in negatives[label] or number in truth.objects[label])
        and number not in not_exhaustive[label]
        for label in own.classes.tolist()
    ]
    return np.array(blamed, dtype=bool) & (areas > 0)


def _geometry(
    own: ImageDetections, objects: Sequence[Mapping[str, Any]], kind: str
) -> tuple[Any, list[Any], list[int]]:
    crowds = [entry["iscrowd"] for entry in objects]
    if kind == "bbox":
        return own.boxes.tolist(), [entry["bbox"] for entry in objects], crowds
    return own.masks, [entry["segmentation"] for entry in objects], crowds
