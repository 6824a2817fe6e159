"""The numbers of semantic segmentation, from one confusion matrix.

Legend: K classes, H W rows and columns of the original image. "Valid" pixels have a label that is
not the ignore label; no other pixels are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from clipself_seg.errors import InputError, nearest
from clipself_seg.evaluation.equal_runs import equal_runs

# Which classes the mean IoU is taken over: "present" in the ground truth (Detectron2 since July
# 2022), or "union": present or predicted anywhere, the latter with an IoU of 0 (before).
MiouRule = Literal["present", "union"]
RULES: tuple[str, ...] = get_args(MiouRule)


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


def check_rule(rule: str) -> MiouRule:
    """Returns the rule itself if it is one of `RULES`.

    Raises:
        InputError: it is none of them; names the choices.
    """
    for known in get_args(MiouRule):
        if rule == known:
            return known
    raise InputError(f'unknown mIoU rule "{rule}": {nearest(rule, RULES)}')


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
    """Read the numbers of every class off a confusion matrix.

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


def sem_seg_results(
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


def class_keys(class_names: Sequence[str]) -> list[str]:
    """Names of the classes as keys of results: of equal names all but the last also have the index."""
    last = {name: index for index, name in enumerate(class_names)}
    return [
        name if last[name] == index else f"{name} ({index})"
        for index, name in enumerate(class_names)
    ]
