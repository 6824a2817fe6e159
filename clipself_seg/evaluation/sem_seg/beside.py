"""Counts per image for Open mIoU, Boundary IoU and the naming of true masks.

Legend: K classes, H W rows and columns of the original image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from clipself_seg.evaluation.sem_seg.boundary import boundary_counts, boundary_iou
from clipself_seg.evaluation.sem_seg.naming import mask_names, naming_accuracy
from clipself_seg.evaluation.sem_seg.numbers import MiouRule
from clipself_seg.evaluation.sem_seg.open_iou import open_iou


@dataclasses.dataclass(frozen=True)
class Beside:
    """The choice of metrics beside IoU and accuracy.

    Attributes:
        similarity: (K, K) in [0, 1] for Open mIoU; None measures none.
        boundary: whether Boundary IoU is.
        naming: whether naming of true masks is.
    """

    similarity: np.ndarray | None = None
    boundary: bool = False
    naming: bool = False


class BesideCounts:
    """Counts of these metrics over images; those of several processes add up. What is not measured has no counts."""

    def __init__(self, asked: Beside, num_classes: int) -> None:
        self.boundary = np.zeros((3, num_classes * asked.boundary), dtype=np.int64)
        self.names = np.zeros((num_classes * asked.naming,) * 2, dtype=np.int64)

    def add_image(
        self,
        asked: Beside,
        matrix: np.ndarray,
        predicted: np.ndarray,
        truth: np.ndarray,
        ignore_label: int,
    ) -> None:
        """Count an image.

        Args:
            asked: what is measured.
            matrix: confusion matrix (K, K) of this image.
            predicted: classes (H, W).
            truth: classes (H, W), or `ignore_label`.
            ignore_label: label of pixels that do not count.
        """
        if asked.boundary:
            self.boundary += boundary_counts(predicted, truth, len(matrix), ignore_label)
        if asked.naming:
            self.names += mask_names(matrix)

    def __iadd__(self, other: BesideCounts) -> BesideCounts:
        self.boundary += other.boundary
        self.names += other.names
        return self


def beside_results(
    asked: Beside,
    counts: BesideCounts,
    matrix: np.ndarray,
    rule: MiouRule,
    seen: np.ndarray | None,
) -> dict[str, float]:
    """Means in percent of what is asked for.

    Args:
        asked: what is measured.
        counts: those of all images.
        matrix: confusion matrix (K, K) of all images.
        rule: which classes Open mIoU is taken over.
        seen: bool (K or fewer,), which of the first classes belong to the training vocabulary; None splits nothing.

    Returns:
        "Open-mIoU", "Boundary-mIoU" and "naming", the mean class accuracy of naming true masks; with `seen` also
        with the suffixes "-seen" and "-unseen", where a class counts.
    """
    values: dict[str, np.ndarray] = {}
    if asked.similarity is not None:
        values["Open-mIoU"] = open_iou(matrix, asked.similarity, rule)
    if asked.boundary:
        values["Boundary-mIoU"] = boundary_iou(counts.boundary)
    if asked.naming:
        values["naming"] = naming_accuracy(counts.names)
    return _means(values, seen)


def _means(values: Mapping[str, np.ndarray], seen: np.ndarray | None) -> dict[str, float]:
    results = {}
    for name, of_class in values.items():
        groups = {"": of_class}
        if seen is not None:
            groups |= {
                "-seen": of_class[: len(seen)][seen],
                "-unseen": of_class[: len(seen)][~seen],
            }
        for suffix, group in groups.items():
            if not np.isnan(group).all():
                results[f"{name}{suffix}"] = 100 * float(np.nanmean(group))
    return results
