"""Polygons of masks, as YOLO's files of segments have them: outer borders, without holes."""

from __future__ import annotations

import cv2
import numpy as np

CORNERS = 3  # of the smallest polygon


def mask_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """The outer border of each connected part of a mask, the largest first; what is thinner than a polygon has none.

    Args:
        mask: (H, W) bool.

    Returns:
        (k, 2) int32 each, x and y of the outermost pixels of a part, k at least 3. Filled, and with its border, a
        polygon has the pixels of its part and of the holes in it.
    """
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    polygons = [contour.reshape(-1, 2) for contour in contours if len(contour) >= CORNERS]
    return sorted(polygons, key=lambda polygon: -cv2.contourArea(polygon))


def joined_polygon(parts: list[np.ndarray]) -> np.ndarray:
    """One polygon of several: from the nearest point of what is joined already a line leads to each part and back.

    Args:
        parts: (k, 2) each, at least one.
    """
    from scipy.spatial import cKDTree  # a while, which only instances in parts need

    joined, *others = parts
    for part in others:
        distances, nearest = cKDTree(joined).query(part)
        first = int(distances.argmin())
        place = int(nearest[first])
        there = np.concatenate([part[first:], part[: first + 1]])
        joined = np.concatenate([joined[: place + 1], there, joined[place:]])
    return joined
