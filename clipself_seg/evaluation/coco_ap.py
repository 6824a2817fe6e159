"""Average precision (AP) of boxes and of instance masks: pycocotools' and the LVIS package's numbers, and the base of
the evaluators that compare by it.

pycocotools compares one class at a time, and only the images in which that class is predicted or
annotated: classes do not depend on each other, so its numbers are the same, and LVIS's 1203 classes need
no table of 24 million pairs. What LVIS does otherwise is in `_DetectionTable` and `_ClassEval`.

Legend: K classes, T IoU thresholds, R recalls, A ranges of areas (the first is all), M limits of
detections.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from clipself_seg.errors import InputError
from clipself_seg.evaluation import coco_objects
from clipself_seg.evaluation.evaluator import ImageEvaluator, ImageId, Outputs, Samples

# Value of TEST.DETECTION.LIMITS -> detections of a class in an image: those of AP and of COCO's three
# recalls. AP is taken at 100, all other numbers at the last one.
LIMITS = {"detectron2": (1, 10, 100), "mmdetection": (1, 100, 300)}
# The LVIS package counts the best detections of an image, whatever their classes.
LVIS_LIMIT = 300
COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
FREQUENCIES = ("r", "c", "f")
AREAS = ("all", "small", "medium", "large")
logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class ObjectEvaluator(ImageEvaluator[coco_objects.ImageDetections]):
    """Keeps detections image by image; the main process compares those of all processes.

    Attributes:
        boxes: True if boxes are kept.
        masks: True if masks are kept, run-length encoded.
        ground_truth: objects of the data set; each of its images has to be evaluated.
    """

    boxes = True
    masks = False

    ground_truth: coco_objects.TrueObjects

    def __post_init__(self) -> None:
        super().__post_init__()
        self.image_ids = self.ground_truth.image_ids

    def process(self, inputs: Samples, outputs: Outputs) -> None:
        """Keeps the detections of a batch.

        Args:
            inputs: samples with "file_name" and "image_id".
            outputs: for each sample "instances" with "scores" (n,), "pred_classes" (n,) in [0, K), and as they are
                kept "pred_boxes" (XYXY in pixels of the original image) and "pred_masks" (n, H, W) bool.

        Raises:
            FloatingPointError: a score or a box is not finite.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            source = sample["file_name"]
            detections = coco_objects.image_detections(
                output["instances"], source=source, boxes=self.boxes, masks=self.masks
            )
            classes = detections.classes
            assert ((classes >= 0) & (classes < len(self.vocabulary))).all(), source
            self._images[sample["image_id"]] = detections


class ObjectQuality(NamedTuple):
    """pycocotools' numbers of all classes.

    Attributes:
        precision: (T, R, K, A, M) in [0, 1], -1 for a class without an object.
        recall: (T, K, A, M) in [0, 1], -1 for a class without an object.
        limits: the M limits.
        order: (K,) the classes by rising category id, in which pycocotools adds them up.
        objects: (K,) number of true objects of each class, crowds aside.
        detections: (K,) number of detections of each class, within LVIS's limit where that holds.
    """

    precision: np.ndarray
    recall: np.ndarray
    limits: tuple[int, ...]
    order: np.ndarray
    objects: np.ndarray
    detections: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Bool (K,): classes with an object, which the means are taken over."""
        known: np.ndarray = self.precision[0, 0, :, 0, -1] > -1
        return known


def object_quality(
    truth: coco_objects.TrueObjects,
    predicted: Mapping[ImageId, coco_objects.ImageDetections],
    kind: str,
    limits: Sequence[int],
) -> ObjectQuality:
    """Compares detections and true objects in all images of a data set.

    Args:
        truth: objects of the K classes of the data set. If it is federated, as LVIS's, LVIS's rules hold:
            a detection of a class that is neither said to be in the image nor said not to be does not
            count, nor does one without an object where not all of its class are annotated, and the
            best 300 detections of an image count.
        predicted: image id -> detections, for every image.
        kind: "bbox", or "segm" for masks.
        limits: the M limits, for COCO's rules; see `LIMITS`.

    Raises:
        InputError: masks have another size than the file states.
    """
    if truth.federated is not None:
        limits = (LVIS_LIMIT,)
    table = _DetectionTable(truth, predicted, kind)
    num_classes = len(truth.category_ids)
    shape = (num_classes, len(AREAS), len(limits))
    precision = np.full((10, 101, *shape), -1.0)
    recall = np.full((10, *shape), -1.0)
    # A class without an object has no numbers, whatever is predicted.
    labels = [label for label in range(num_classes) if truth.objects[label]]
    with contextlib.redirect_stdout(io.StringIO()):
        for label in tqdm(labels, desc="detections", unit="class", delay=2, leave=False):
            one = _ClassEval(truth, label, table.of_class(label), kind, limits)
            one.evaluate()
            one.accumulate()
            precision[:, :, label] = one.eval["precision"][:, :, 0]
            recall[:, label] = one.eval["recall"][:, 0]
    return ObjectQuality(
        precision,
        recall,
        tuple(limits),
        np.argsort(truth.category_ids),
        np.array([_count_objects(by_image) for by_image in truth.objects], dtype=np.int64),
        np.diff(table.starts),
    )


def _count_objects(by_image: Mapping[int, Sequence[coco_objects.Entry]]) -> int:
    return sum(not entry["ignore"] for entries in by_image.values() for entry in entries)


class _DetectionTable:
    """Detections of all images by class. COCO's dictionaries are made of one class at a time: those of
    Objects365's nine million detections would not fit into the memory.

    Attributes:
        starts: (K + 1,) row of the first detection of each class.
    """

    def __init__(
        self,
        truth: coco_objects.TrueObjects,
        predicted: Mapping[ImageId, coco_objects.ImageDetections],
        kind: str,
    ) -> None:
        self.truth = truth
        self.kind = kind
        self.detections = [predicted[image_id] for image_id in truth.image_ids]
        if truth.federated is not None:
            self.detections = [one.best(LVIS_LIMIT) for one in self.detections]
        if kind == "segm":
            self._check_masks()
        labels = np.concatenate([one.classes for one in self.detections])
        counts = [len(one.classes) for one in self.detections]
        order = np.argsort(labels, kind="stable")
        self._images = np.repeat(np.arange(len(counts)), counts)[order]
        self._indices = np.concatenate([np.arange(count) for count in counts])[order]
        self.starts = np.searchsorted(labels[order], np.arange(len(truth.category_ids) + 1))

    def _check_masks(self) -> None:
        for image_id, one, (height, width) in zip(
            self.truth.image_ids, self.detections, self.truth.sizes
        ):
            for mask in one.masks or ():
                if list(mask["size"]) != [height, width]:
                    raise InputError(
                        f"image {image_id}: masks have {mask['size'][1]} x {mask['size'][0]} pixels "
                        f"(width x height), the file of objects says {width} x {height}"
                    )

    def of_class(self, label: int) -> dict[int, list[coco_objects.Entry]]:
        """The detections of a class that count: number of the image -> what COCOeval needs of each."""
        federated = self.truth.federated
        by_image: dict[int, list[coco_objects.Entry]] = defaultdict(list)
        rows = slice(*self.starts[label : label + 2])
        pairs = zip(self._images[rows].tolist(), self._indices[rows].tolist())
        for number, (image, index) in enumerate(pairs, 1):
            entry = self._entry(self.detections[image], index) | {"id": number}
            if federated is not None:
                stated = image in federated.negatives[label] or image in self.truth.objects[label]
                # The LVIS package takes objects and detections with an area only.
                if not stated or not entry["area"] > 0:
                    continue
            by_image[image].append(entry)
        return by_image

    def _entry(self, one: coco_objects.ImageDetections, index: int) -> coco_objects.Entry:
        entry: coco_objects.Entry = {"score": one.scores[index].item()}
        if self.kind == "bbox":
            box = one.boxes[index].tolist()
            return entry | {"bbox": box, "area": box[2] * box[3]}
        assert one.masks is not None
        mask = one.masks[index]
        return entry | {"segmentation": mask, "area": int(rle.area(mask))}


class _ClassEval(COCOeval):
    """COCOeval of one class, which is called 0, in the images where it is annotated or predicted."""

    def __init__(
        self,
        truth: coco_objects.TrueObjects,
        label: int,
        detections: Mapping[int, list[coco_objects.Entry]],
        kind: str,
        limits: Sequence[int],
    ) -> None:
        super().__init__(iouType=kind)
        self.params.catIds = [0]
        self.params.imgIds = sorted({*truth.objects[label], *detections})
        self.params.maxDets = list(limits)
        self.objects = truth.objects[label]
        self.detections = detections
        self.not_exhaustive: frozenset[int] = frozenset()
        if truth.federated is not None:
            self.not_exhaustive = truth.federated.not_exhaustive[label]

    def _prepare(self) -> None:
        # Copies: pycocotools writes into them.
        objects = {(i, 0): [dict(e) for e in entries] for i, entries in self.objects.items()}
        self._gts = defaultdict(list, objects)
        self._dts = defaultdict(list, {(i, 0): own for i, own in self.detections.items()})

    def evaluateImg(self, imgId: int, catId: int, aRng: Any, maxDet: int) -> Any:
        result = super().evaluateImg(imgId, catId, aRng, maxDet)
        if result is not None and imgId in self.not_exhaustive:
            result["dtIgnore"] = np.logical_or(result["dtIgnore"], result["dtMatches"] == 0)
        return result


def coco_numbers(quality: ObjectQuality) -> dict[str, float]:
    """COCO's twelve numbers in percent; one that no class counts for is left out.

    Returns:
        `COCO_NUMBERS` and the recalls "AR1", "AR10" and "AR100" (by the limits), "ARs", "ARm", "ARl".
    """
    summary = COCOeval(iouType="bbox")
    summary.params.maxDets = list(quality.limits)
    summary.eval = {
        "precision": quality.precision[:, :, quality.order],
        "recall": quality.recall[:, quality.order],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        summary.summarize()
    recalls = (*(f"AR{limit}" for limit in quality.limits), "ARs", "ARm", "ARl")
    return _percent(dict(zip((*COCO_NUMBERS, *recalls), summary.stats)))


def lvis_numbers(quality: ObjectQuality, frequencies: Sequence[str | None]) -> dict[str, float]:
    """The LVIS package's precisions in percent; one that no class counts for is left out.

    Args:
        quality: numbers of the K classes.
        frequencies: "r", "c" or "f" of each of the K classes.

    Returns:
        `COCO_NUMBERS`, and "APr", "APc" and "APf" of rare, common and frequent classes.
    """
    precision = quality.precision[:, :, quality.order][..., 0]
    thresholds = COCOeval(iouType="bbox").params.iouThrs
    numbers = {"AP": _mean(precision[..., 0])}
    for name, threshold in (("AP50", 0.5), ("AP75", 0.75)):
        numbers[name] = _mean(precision[np.flatnonzero(thresholds == threshold), :, :, 0])
    for area, name in enumerate(AREAS[1:], 1):
        numbers[f"AP{name[0]}"] = _mean(precision[..., area])
    groups = np.array(frequencies)[quality.order]
    for frequency in FREQUENCIES:
        numbers[f"AP{frequency}"] = _mean(precision[:, :, groups == frequency, 0])
    return _percent(numbers)


def _mean(values: np.ndarray) -> float:
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else -1.0


def _percent(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: 100 * float(value) for name, value in numbers.items() if value >= 0}


def class_precision(quality: ObjectQuality) -> tuple[np.ndarray, np.ndarray]:
    """AP and AP50 (K,) of each class in [0, 1], over all areas; NaN for a class without an object.

    AP is at 100 detections where that is among the limits, AP50 at the largest limit.
    """
    at = quality.limits.index(100) if 100 in quality.limits else -1
    ap = quality.precision[..., 0, at].mean(axis=(0, 1))
    ap50 = quality.precision[0, ..., 0, -1].mean(axis=0)
    return np.where(quality.known, ap, np.nan), np.where(quality.known, ap50, np.nan)


def split_numbers(quality: ObjectQuality, seen: np.ndarray | None = None) -> dict[str, float]:
    """Means over the classes of each group that have an object, in percent, and their number.

    Args:
        quality: numbers of the K classes.
        seen: (K,) bool, classes that training shows (base classes); None splits nothing.

    Returns:
        "classes", the number of classes with an object; with `seen` also "AP-seen", "AP50-seen",
        "classes-seen" and the same of unseen (novel) classes. A mean over no class is left out.
    """
    results = {"classes": float(quality.known.sum())}
    if seen is None:
        return results
    by_class = dict(zip(("AP", "AP50"), class_precision(quality)))
    for group, members in (("seen", seen), ("unseen", ~seen)):
        count = int((quality.known & members).sum())
        results[f"classes-{group}"] = float(count)
        if count:
            for name, values in by_class.items():
                results[f"{name}-{group}"] = 100 * float(np.nanmean(values[members]))
    return results
