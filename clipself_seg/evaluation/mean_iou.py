"""Mean IoU and accuracy of semantic segmentation: predicted classes and label maps in, means of a confusion matrix out.

The numbers and their names are those of Detectron2's `SemSegEvaluator`, to the last digit. Left out is what no number
here needs: its run-length encoding of every predicted class of every image, and its boundary IoU.

Legend: K classes, H W rows and columns of the original image. "Valid" pixels have a label that is not the ignore label;
no other pixels are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from clipself_seg.data.masks import read_labels_of
from clipself_seg.errors import InputError
from clipself_seg.evaluation.evaluator import Output, Outputs, Samples, equal_runs
from clipself_seg.evaluation.report import class_keys, percents, seen_cells, write_class_csv


@dataclass(kw_only=True, eq=False)
class MeanIoUEvaluator(DatasetEvaluator):
    """Counts pixels, and adds up the counts of all processes before anything is divided.

    Attributes:
        dataset_name: name of the data set for messages and the file.
        class_names: names of the K classes.
        ignore_label: label of pixels of the label maps that do not count.
        background: every prediction from this one on becomes this one, which is then the last
            of the K classes (VOC-20b: 20); None merges nothing.
        seen: bool (K or fewer,), which of the first classes belong to the training vocabulary;
            None splits nothing.
        rule: classes that the mean IoU is taken over, see `MiouRule`.
        output_dir: folder where the main process writes `sem_seg_classes_<data set>.csv`; None
            writes nothing.
        threshold: score below which a pixel is background, where there is one; 0 is never.
        confusion: pixels of all processes, see `confusion_matrix`; after `evaluate`.
    """

    dataset_name: str
    class_names: Sequence[str]
    ignore_label: int
    background: int | None = None
    seen: np.ndarray | None = None
    rule: MiouRule = "present"
    output_dir: Path | None = None
    threshold: float = 0.0
    confusion: np.ndarray | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.background is None:
            self.threshold = 0.0
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        num_classes = len(self.class_names)
        self._matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
        self._images = 0

    def process(self, inputs: Samples, outputs: Outputs) -> None:
        """Counts the pixels of a batch.

        Args:
            inputs: samples with "file_name", "sem_seg_file_name", and the original "height" and
                "width" in pixels.
            outputs: for each sample "sem_seg_labels" (H, W) integers, and their scores (H, W) as
                "sem_seg_best" if they are known; or "sem_seg", scores (C, H, W), of which the highest
                counts, the first of equal ones. C is K, or more if there is a background.

        Raises:
            InputError: the label map is missing, broken or not of this vocabulary.
            FloatingPointError: the best score of a pixel is not finite.
        """
        num_classes = len(self.class_names)
        for sample, output in zip(inputs, outputs, strict=True):
            height, width = int(sample["height"]), int(sample["width"])
            predicted = self._labels(sample["file_name"], output)
            assert predicted.shape == (height, width), sample["file_name"]
            truth = read_labels_of(sample, num_classes=num_classes, ignore_label=self.ignore_label)
            self._matrix += confusion_matrix(predicted, truth, num_classes, self.ignore_label)
            self._images += 1

    def _labels(self, file_name: str, output: Output) -> np.ndarray:
        """Predicted classes (H, W), merged and checked."""
        if "sem_seg_labels" in output:
            labels = output["sem_seg_labels"]
            best = output.get("sem_seg_best")
        else:
            best, labels = output["sem_seg"].max(dim=0)
        if best is not None and not torch.isfinite(best).all():
            raise FloatingPointError(
                f"the scores of {file_name} are not finite: the weights or the precision are at fault"
            )
        predicted = labels.cpu().numpy()
        if self.background is not None:
            predicted = np.minimum(predicted, self.background)
        if self.threshold:
            assert best is not None, "the threshold needs the scores of the labels"
            predicted[(best < self.threshold).cpu().numpy()] = self.background
        largest = predicted.max(initial=0)
        assert predicted.min(initial=0) >= 0 and largest < len(self.class_names), file_name
        return predicted

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Adds up the counts of all processes and divides.

        Returns:
            {"sem_seg": numbers of `mean_iou_results` and "images"}, the same in every process.

        Raises:
            InputError: no pixel of the data set is valid (in every process, so that none waits).
        """
        counted = comm.all_gather((self._matrix, self._images))
        matrix = np.sum([part for part, _ in counted], axis=0)
        self.confusion = matrix
        images = sum(number for _, number in counted)
        if not matrix.any():
            raise InputError(
                f'"{self.dataset_name}" has no labelled pixel in {images} images: its label maps hold '
                f"nothing but the ignore label {self.ignore_label}"
            )
        numbers = class_numbers(matrix, self.rule)
        results = {"images": float(images)}
        results |= mean_iou_results(numbers, self.class_names, self.seen)
        if comm.is_main_process() and self.output_dir is not None:
            path = self.output_dir / f"sem_seg_classes_{self.dataset_name}.csv"
            columns = {
                "iou": percents(numbers.iou),
                "accuracy": percents(numbers.accuracy),
                "gt_pixels": numbers.truth.tolist(),
                "predicted_pixels": numbers.predicted.tolist(),
                "seen": seen_cells(self.seen, len(self.class_names)),
            }
            write_class_csv(path, self.class_names, columns)
        return {"sem_seg": results}


# Which classes the mean IoU is taken over: "present" in the ground truth (Detectron2 since July
# 2022), or "union": present or predicted anywhere, the latter with an IoU of 0 (before).
MiouRule = Literal["present", "union"]


class ClassNumbers(NamedTuple):
    """Numbers of each class, arrays (K,).

    Attributes:
        iou: intersection over union in [0, 1]; NaN for classes that do not count by the rule.
        accuracy: fraction of the class's pixels that are predicted as it; NaN without ground truth.
        hits: number of the class's pixels that are predicted as it.
        truth: number of the class's pixels in the ground truth.
        predicted: number of valid pixels predicted as the class.
    """

    iou: np.ndarray
    accuracy: np.ndarray
    hits: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


def confusion_matrix(
    predicted: np.ndarray, truth: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Numbers of valid pixels, int64 (K, K): rows are the ground truth, columns the prediction.

    Args:
        predicted: (H, W) integers in [0, K).
        truth: (H, W) integers in [0, K), or `ignore_label`, which may lie in or outside of [0, K).
        num_classes: number of classes, K.
        ignore_label: label of pixels that do not count.
    """
    true_labels, labels = truth.ravel(), predicted.ravel()
    starts, lengths = equal_runs(true_labels, labels)
    rows = true_labels[starts]
    valid = rows != ignore_label
    # Narrow labels (uint8) would overflow when they are multiplied.
    cells = rows[valid].astype(np.int64) * num_classes + labels[starts[valid]]
    counts = np.bincount(cells, lengths[valid], num_classes**2)
    return counts.astype(np.int64).reshape(num_classes, num_classes)


def class_numbers(matrix: np.ndarray, rule: MiouRule = "present") -> ClassNumbers:
    """Reads the numbers of every class off a confusion matrix.

    Args:
        matrix: int64 (K, K), see `confusion_matrix`.
        rule: which classes have an IoU, see `MiouRule`.
    """
    hits = matrix.diagonal()
    truth = matrix.sum(axis=1)
    predicted = matrix.sum(axis=0)
    union = truth + predicted - hits
    counted = truth > 0 if rule == "present" else union > 0
    nan = np.full(len(matrix), np.nan)
    iou = np.divide(hits, union, out=nan.copy(), where=counted)
    accuracy = np.divide(hits, truth, out=nan, where=truth > 0)
    return ClassNumbers(iou, accuracy, hits, truth, predicted)


def mean_iou_results(
    numbers: ClassNumbers, class_names: Sequence[str], seen: np.ndarray | None = None
) -> dict[str, float]:
    """Means in percent and counts, under Detectron2's names.

    Args:
        numbers: numbers of the K classes; some pixel has to be valid.
        class_names: names of the K classes. Of equal names the last has the plain key, as in
            Detectron2; the keys of the others also have the class's index.
        seen: bool (K or fewer,), which of the first classes belong to the training vocabulary; the
            rest is neither seen nor unseen. None splits nothing.

    Returns:
        "mIoU", "fwIoU", "mACC", "pACC", "IoU-<class>" and "ACC-<class>" (NaN for a class that does
        not count), "classes", the number of classes present; with `seen` also "mIoU-seen",
        "mACC-seen", "classes-seen" and the same of unseen classes, means only where a class counts.
    """
    iou, accuracy, hits, truth, _ = numbers
    weights = truth / truth.sum()
    present = truth > 0
    results = {
        "mIoU": _mean_percent(iou),
        "fwIoU": 100 * float(np.sum(iou[present] * weights[present])),
        "mACC": _mean_percent(accuracy),
        "pACC": 100 * float(hits.sum() / truth.sum()),
        "classes": float(present.sum()),
    }
    if seen is not None:
        for group, chosen in (("seen", seen), ("unseen", ~seen)):
            members = np.flatnonzero(chosen)
            results[f"classes-{group}"] = float(present[members].sum())
            for name, values in (("mIoU", iou[members]), ("mACC", accuracy[members])):
                if not np.isnan(values).all():
                    results[f"{name}-{group}"] = _mean_percent(values)
    for index, key in enumerate(class_keys(class_names)):
        results[f"IoU-{key}"] = 100 * float(iou[index])
        results[f"ACC-{key}"] = 100 * float(accuracy[index])
    return results


def _mean_percent(values: np.ndarray) -> float:
    """Mean in percent of the values that are not NaN."""
    values = values[~np.isnan(values)]
    return 100 * float(np.sum(values) / len(values))
