"""Average precision (AP) of instance masks: pycocotools' numbers, of things alone.

The rules are COCO's: IoU 0.50 to 0.95, at most 100 predictions an image, and a prediction on a crowd
of its class does not count as false.

Legend: K classes of a vocabulary, T IoU thresholds, R recalls, A ranges of areas.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.instances.ground_truth import InstanceGroundTruth, thing_categories
from clipself_seg.files import atomic_path

# Name of a number -> its position in COCOeval's summary.
SUMMARY = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5}
CSV_COLUMNS = ("index", "name", "seen", "ap", "ap50", "instances", "predictions")
logger = logging.getLogger(__name__)


class ImageInstances(NamedTuple):
    """The n instances that are predicted in an image.

    Attributes:
        masks: run-length encoding of each instance, see `encode_masks`.
        scores: score of each instance, of any scale.
        classes: class of each instance, in [0, K).
    """

    masks: list[dict[str, Any]]
    scores: list[float]
    classes: list[int]


class InstanceQuality(NamedTuple):
    """COCOeval's numbers, for all classes of a vocabulary.

    Attributes:
        summary: its twelve numbers in [0, 1], -1 where no class counts.
        precision: (T, R, K) in [0, 1] over all areas, -1 for a class without an instance.
        instances: (K,) number of true instances of each class, crowds aside.
        predictions: (K,) number of predicted instances of each class.
    """

    summary: np.ndarray
    precision: np.ndarray
    instances: np.ndarray
    predictions: np.ndarray


def instance_quality(
    truth: InstanceGroundTruth, predicted: Mapping[Any, ImageInstances], vocabulary: Vocabulary
) -> InstanceQuality:
    """Compares predicted and true instances in all images of a data set.

    Args:
        truth: instances of the data set.
        predicted: image id -> predicted instances, for every image; those of stuff are left out.
        vocabulary: K classes of the data set; it says which are things.

    Raises:
        InputError: masks have another size than the file states.
    """
    categories = np.array([entry.dataset_id for entry in vocabulary.classes])
    detections: list[dict[str, Any]] = []
    for image, image_id in zip(truth.images, truth.image_ids):
        size = [image["height"], image["width"]]
        for mask, score, label in zip(*predicted[image_id]):
            if list(mask["size"]) != size:
                raise InputError(
                    f"image {image_id}: masks have {mask['size'][1]} x {mask['size'][0]} pixels "
                    f"(width x height), the instances' file says {size[1]} x {size[0]}"
                )
            detections.append(
                {
                    "id": len(detections) + 1,
                    "image_id": image["id"],
                    "category_id": int(categories[label]),
                    "segmentation": mask,
                    "area": int(rle.area(mask)),
                    "score": score,
                }
            )
    things = thing_categories(vocabulary)
    summary, precision_TRK = _coco_eval(truth, detections, things)
    precision = np.full((*precision_TRK.shape[:2], len(vocabulary)), -1.0)
    # COCOeval has the categories in rising order, and only those of things.
    precision[..., [vocabulary.dataset_id_to_index[i] for i in sorted(things)]] = precision_TRK
    counts = [
        np.array([[entry["category_id"] for entry in part]]).T == categories
        for part in ([e for e in truth.annotations if not e["iscrowd"]], detections)
    ]
    return InstanceQuality(summary, precision, *(count.sum(axis=0) for count in counts))


class _WatchedEval(COCOeval):
    """COCOeval with a progress bar, which appears after 2 s: COCO's 5000 images take a minute."""

    def __init__(self, truth: COCO, predicted: COCO, kind: str) -> None:
        super().__init__(truth, predicted, kind)
        params = self.params
        pairs = len(params.imgIds) * len(params.catIds)
        total = pairs * (1 + len(params.areaRng))
        self.bar = tqdm(desc="instances", total=total, unit="pair", delay=2, leave=False)

    def evaluate(self) -> None:
        with self.bar:
            super().evaluate()

    def computeIoU(self, *pair: Any) -> Any:
        self.bar.update()
        return super().computeIoU(*pair)

    def evaluateImg(self, *pair: Any) -> Any:
        self.bar.update()
        return super().evaluateImg(*pair)


def _coco_eval(
    truth: InstanceGroundTruth, detections: list[dict[str, Any]], things: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Summary (12,), and precision (T, R, things) of all areas, things by rising category id."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        true, predicted = (
            _coco(truth.images, part, things) for part in (truth.annotations, detections)
        )
        evaluation = _WatchedEval(true, predicted, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    logger.debug("pycocotools:\n%s", said.getvalue())
    return evaluation.stats, evaluation.eval["precision"][..., 0, -1]


def _coco(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], things: list[int]
) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": images,
        # Copies: pycocotools writes into them.
        "annotations": [dict(entry) for entry in annotations],
        "categories": [{"id": category} for category in things],
    }
    coco.createIndex()
    return coco


def class_precision(quality: InstanceQuality) -> tuple[np.ndarray, np.ndarray]:
    """AP and AP50 (K,) of each class in [0, 1], NaN for a class without an instance."""
    known = quality.precision[0, 0] > -1
    ap = np.where(known, quality.precision.mean(axis=(0, 1)), np.nan)
    return ap, np.where(known, quality.precision[0].mean(axis=0), np.nan)


def instance_results(quality: InstanceQuality, seen: np.ndarray | None = None) -> dict[str, float]:
    """Means in percent over the classes with an instance, and their number.

    Args:
        quality: numbers of the K classes.
        seen: (K,) bool, classes of the training vocabulary; None splits nothing.

    Returns:
        The keys of `SUMMARY`, and "classes", the number of classes with an instance; with `seen`
        also "AP-seen", "classes-seen" and the same of unseen classes. A mean over no class is left
        out.
    """
    results = {
        key: 100 * float(quality.summary[position])
        for key, position in SUMMARY.items()
        if quality.summary[position] >= 0
    }
    known = quality.precision[0, 0] > -1
    results["classes"] = float(known.sum())
    if seen is not None:
        for group, members in (("seen", known & seen), ("unseen", known & ~seen)):
            results[f"classes-{group}"] = float(members.sum())
            if members.any():
                results[f"AP-{group}"] = 100 * float(quality.precision[..., members].mean())
    return results


def write_instance_csv(
    path: str | os.PathLike[str],
    class_names: Sequence[str],
    quality: InstanceQuality,
    seen: np.ndarray | None = None,
) -> None:
    """Write `CSV_COLUMNS` of each class, atomically.

    AP and AP50 are percent in full precision, empty for a class without an instance; "seen" is 0
    or 1, empty where the training vocabulary is not known.

    Args:
        path: the CSV to write.
        class_names: names of the K classes.
        quality: numbers of the K classes.
        seen: (K,) bool, classes of the training vocabulary; None if that is not known.
    """
    percent = [100 * values for values in class_precision(quality)]
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for index, name in enumerate(class_names):
            known = "" if seen is None else int(seen[index])
            numbers = [
                "" if np.isnan(values[index]) else repr(float(values[index])) for values in percent
            ]
            counts = (int(quality.instances[index]), int(quality.predictions[index]))
            writer.writerow((index, name, known, *numbers, *counts))
