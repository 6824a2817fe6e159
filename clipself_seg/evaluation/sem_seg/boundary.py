"""Boundary IoU: the IoU of those pixels of a class that are near its edge (arXiv 2103.16562).

Legend: K classes, H W rows and columns of the original image.
"""

from __future__ import annotations

import math

import numpy as np

DILATION = 0.02  # width of the band along the edges, as a fraction of the image's diagonal


def boundary_width(height: int, width: int, dilation: float = DILATION) -> int:
    """Width of the band in pixels, at least 1."""
    return max(1, round(dilation * math.hypot(height, width)))


def boundary_pixels(labels: np.ndarray, width: int) -> np.ndarray:
    """Pixels within some distance of another class or of the end of the image, bool (H, W).

    They are what is left of each class's mask without its erosion by a square of 2 width + 1 pixels, for all
    classes at once.

    Args:
        labels: (H, W) integers of any values.
        width: width of the band in pixels, at least 1; distances are the larger one of both axes.
    """
    _, numbers = np.unique(labels, return_inverse=True)
    numbers = numbers.reshape(labels.shape)
    along = _constant(numbers, width)
    # A column is constant where its rows are, and have one class.
    across = _constant(np.where(along, numbers, -1).T, width).T
    return ~(along & across)


def _constant(rows: np.ndarray, width: int) -> np.ndarray:
    """Whether the pixels of a row up to some distance are there and equal, bool (H, W)."""
    height, length = rows.shape
    inside = np.zeros(rows.shape, dtype=bool)
    if length <= 2 * width:
        return inside
    changes = np.zeros(rows.shape, dtype=np.int64)
    np.cumsum(rows[:, 1:] != rows[:, :-1], axis=1, out=changes[:, 1:])
    inside[:, width : length - width] = changes[:, 2 * width :] == changes[:, : length - 2 * width]
    return inside


def boundary_counts(
    predicted: np.ndarray,
    truth: np.ndarray,
    num_classes: int,
    ignore_label: int,
    dilation: float = DILATION,
) -> np.ndarray:
    """Numbers of boundary pixels of each class, int64 (3, K): common, of the truth, and of the prediction.

    Pixels without ground truth count nowhere, and the prediction ends at them as the truth does.

    Args:
        predicted: (H, W) integers in [0, K).
        truth: (H, W) integers in [0, K), or `ignore_label`.
        num_classes: number of classes, K.
        ignore_label: label of pixels that do not count.
        dilation: width of the band, as a fraction of the diagonal.
    """
    width = boundary_width(truth.shape[0], truth.shape[1], dilation)
    valid = truth != ignore_label
    true_labels = np.where(valid, truth.astype(np.int64), -1)
    labels = np.where(valid, predicted.astype(np.int64), -1)
    near_truth = valid & boundary_pixels(true_labels, width)
    near_prediction = valid & boundary_pixels(labels, width)
    common = near_truth & near_prediction & (true_labels == labels)
    chosen = (true_labels[common], true_labels[near_truth], labels[near_prediction])
    return np.stack([np.bincount(part, minlength=num_classes) for part in chosen])


def boundary_iou(counts: np.ndarray) -> np.ndarray:
    """Boundary IoU of each class that is in the ground truth, (K,) in [0, 1]; NaN for the others.

    Args:
        counts: (3, K), the sum of `boundary_counts` of all images.
    """
    common, truth, predicted = counts
    union = truth + predicted - common
    return np.divide(common, union, out=np.full(len(truth), np.nan), where=truth > 0)


def boundary_results(values: np.ndarray, seen: np.ndarray | None) -> dict[str, float]:
    """Means in percent over the classes that count.

    Args:
        values: (K,) of `boundary_iou`.
        seen: bool (K or fewer,), which of the first classes belong to the training vocabulary; None splits nothing.

    Returns:
        "Boundary-mIoU"; with `seen` also "Boundary-mIoU-seen" and "Boundary-mIoU-unseen", where a class counts.
    """
    groups = {"": values}
    if seen is not None:
        groups |= {"-seen": values[: len(seen)][seen], "-unseen": values[: len(seen)][~seen]}
    return {
        f"Boundary-mIoU{suffix}": 100 * float(np.nanmean(group))
        for suffix, group in groups.items()
        if not np.isnan(group).all()
    }
