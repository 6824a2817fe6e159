"""Dense features as pictures: K-Means over the locations of one image (paper, Fig. 4).

Shapes: E channels, h x w cells, k clusters, H x W pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

ITERATIONS = 30
BLUR = (
    5  # pixels of the median filter in the authors' recipe (official repository, issues 12 and 18)
)


def kmeans(features: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """Spherical K-Means of unit-length features, (h, w) int64 in [0, clusters).

    Starts from spread-out locations (k-means++) that `seed` decides. A cluster that loses all its
    locations takes the one that fits its own cluster worst.

    Args:
        features: (E, h, w), unit length per location, padding removed.
        clusters: k, at most h * w.
        seed: of the start.
    """
    height, width = features.shape[1:]
    points = features.reshape(len(features), -1).T.astype(np.float64)
    centres = _spread_out(points, clusters, np.random.default_rng(seed))
    labels = np.full(len(points), -1)
    for _ in range(ITERATIONS):
        similarity = points @ centres.T
        previous, labels = labels, similarity.argmax(1)
        for cluster in np.setdiff1d(np.arange(clusters), labels):
            worst = similarity[np.arange(len(points)), labels].argmin()
            labels[worst] = cluster
            similarity[worst] = np.inf
        if (labels == previous).all():
            break
        sums = np.stack([points[labels == cluster].sum(0) for cluster in range(clusters)])
        centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return labels.reshape(height, width)


def _spread_out(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    chosen = [int(rng.integers(len(points)))]
    distance = np.full(len(points), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, (1 - points @ points[chosen[-1]]).clip(0))
        weights = distance if distance.sum() > 0 else np.ones(len(points))
        chosen.append(int(rng.choice(len(points), p=weights / weights.sum())))
    return points[chosen]


def match_labels(labels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Renumber clusters like the segments that they overlap most, one to one.

    Args:
        labels: (H, W) clusters.
        reference: (H, W) segments, the same size, numbered from 0.

    Returns:
        (H, W): a cluster without a segment of its own gets a number above all of them.
    """
    clusters, segments = int(labels.max()) + 1, int(reference.max()) + 1
    pairs = labels.astype(np.int64) * segments + reference
    overlap = np.bincount(pairs.ravel(), minlength=clusters * segments).reshape(clusters, segments)
    numbers = segments + np.arange(clusters)
    rows, columns = linear_sum_assignment(-overlap)
    numbers[rows] = columns
    return numbers[labels]


def enlarge_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cells to pixels (nearest), edges rounded by the median filter of the authors' recipe."""
    large = cv2.resize(labels.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return cv2.medianBlur(large, BLUR).astype(np.int64)
