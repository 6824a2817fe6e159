"""Maps of dense features: coloured K-Means over the locations of one image (paper, Fig. 4), heat maps.

Shapes: E channels, h x w cells, k clusters, H x W pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

ITERATIONS = 30
# Pixels of the median filter in the authors' recipe (official repository, issues 12 and 18).
BLUR = 5
HEAT = 0.7  # opacity of heat maps


def kmeans(features: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """K-Means of features, (h, w) int64 in [0, clusters), each with a location at least.

    Args:
        features: features of unit length at each location, (E, h, w), without padding.
        clusters: k, at most h * w.
        seed: decides the start, which is spread-out locations (k-means++).
    """
    if clusters == 1:  # OpenCV takes a single row, as of an image of one cell, for a column
        return np.zeros(features.shape[1:], np.int64)
    points = features.reshape(len(features), -1).T.astype(np.float32)
    cv2.setRNGSeed(seed)
    stop = (cv2.TERM_CRITERIA_MAX_ITER, ITERATIONS, 0)
    labels: np.ndarray = np.zeros((len(points), 1), np.int32)
    _, labels, _ = cv2.kmeans(points, clusters, labels, stop, 1, cv2.KMEANS_PP_CENTERS)
    return labels.reshape(features.shape[1:]).astype(np.int64)


def discard_small_clusters(labels: np.ndarray, features: np.ndarray, fraction: float) -> np.ndarray:
    """Clusters without the small ones, whose locations go to the nearest of those that stay.

    The paper discards "clusters with only a few pixels".

    Args:
        labels: clusters (h, w), numbered from 0.
        features: features of unit length at each location, (E, h, w).
        fraction: smallest fraction of the locations that a cluster needs; the largest one always stays.

    Returns:
        Clusters (h, w), numbered from 0 in their former order.
    """
    counts = np.bincount(labels.ravel())
    kept = np.flatnonzero((counts >= fraction * labels.size) | (counts == counts.max()))
    points = features.reshape(len(features), -1).T
    centres = np.stack([points[labels.ravel() == cluster].mean(0) for cluster in kept])
    nearest = (points @ centres.T).argmax(1).reshape(labels.shape)
    return np.where(np.isin(labels, kept), np.searchsorted(kept, labels), nearest)


def match_labels(labels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Renumbers clusters like the segments that they overlap most, one to one.

    Args:
        labels: clusters (H, W), numbered from 0.
        reference: segments (H, W), numbered from 0.

    Returns:
        Clusters (H, W) with the numbers of their segments; a cluster without a segment of its own
        gets a number above all of them.
    """
    clusters = int(labels.max()) + 1
    segments = int(reference.max()) + 1
    # Pixels of each pair of cluster and segment, counted by one number for each pair.
    pairs = labels.astype(np.int64) * segments + reference
    overlap = np.bincount(pairs.ravel(), minlength=clusters * segments).reshape(clusters, segments)
    numbers = segments + np.arange(clusters)
    from scipy.optimize import linear_sum_assignment  # half a second

    rows, columns = linear_sum_assignment(-overlap)
    numbers[rows] = columns
    return numbers[labels]


def enlarge_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Labels of cells as labels of pixels (nearest), edges rounded by the authors' median filter."""
    large = cv2.resize(labels.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return cv2.medianBlur(large, BLUR).astype(np.int64)


def heat_map(image: np.ndarray, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values of locations as colours over an image, from black (low) to yellow (high), (H, W, 3) uint8.

    Args:
        image: (H, W, 3) uint8 RGB.
        values: (H, W).
        low: value of black, and what is below it.
        high: value of yellow, above `low`, and what is above it.
    """
    level = ((values - low) / (high - low)).clip(0, 1)
    bgr = cv2.applyColorMap((255 * level).round().astype(np.uint8), cv2.COLORMAP_INFERNO)
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    blended: np.ndarray = cv2.addWeighted(grey, 1 - HEAT, bgr[..., ::-1].copy(), HEAT, 0)
    return blended


# Of M. Okabe and K. Ito (Color Universal Design, 2008), without black: those who do not see all hues tell them
# apart. In an order in which neighbours differ in lightness.
SAFE = (
    (240, 228, 66),
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (86, 180, 233),
    (213, 94, 0),
    (204, 121, 167),
)


def palette(count: int) -> np.ndarray:
    """Colours that stay far apart however many there are, (count, 3) uint8 RGB.

    The first seven can be told apart without seeing all hues; then they come again, darker or lighter.
    """
    number = np.arange(count)
    colours = np.array(SAFE)[number % len(SAFE)].astype(float)
    turn = (number // len(SAFE))[:, None]
    strength = 0.5 ** ((turn + 1) // 2)
    end = 255 * (turn % 2 == 0)  # darker first
    return (end + strength * (colours - end)).round().astype(np.uint8)


def colour_segments(labels: np.ndarray) -> np.ndarray:
    """Label map with one colour for each number and dark borders, (H, W, 3) uint8.

    Args:
        labels: (H, W) integers from 0.
    """
    painted = palette(int(labels.max()) + 1)[labels]
    painted[borders(labels)] //= 3
    return painted


def borders(labels: np.ndarray) -> np.ndarray:
    """Pixels that differ from the one to the right or below, (H, W) bool."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge
