"""Polygons of masks: filled, they are the mask without its holes."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

from clipself_seg.prediction.formats import joined_polygon, mask_polygons


def filled(polygons, shape):
    canvas = np.zeros(shape, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [polygon.astype(np.int32)], 1)
    return canvas.astype(bool)


def test_a_rectangle_is_its_four_corner_pixels():
    mask = np.zeros((8, 9), bool)
    mask[2:5, 3:7] = True
    (polygon,) = mask_polygons(mask)
    assert {tuple(corner) for corner in polygon.tolist()} == {(3, 2), (6, 2), (6, 4), (3, 4)}


def test_parts_are_polygons_of_their_own_and_holes_are_filled():
    rng = np.random.default_rng(0)
    mask = ndimage.binary_opening(rng.random((60, 80)) > 0.12, np.ones((3, 3)))
    polygons = mask_polygons(mask)
    assert len(polygons) > 1 and ndimage.binary_fill_holes(mask).sum() > mask.sum()
    areas = [cv2.contourArea(polygon) for polygon in polygons]
    assert areas == sorted(areas, reverse=True)
    assert (filled(polygons, mask.shape) == ndimage.binary_fill_holes(mask)).all()


def test_lines_and_single_pixels_have_no_polygon():
    mask = np.zeros((9, 9), bool)
    mask[1, 2:8] = mask[7, 7] = True
    assert mask_polygons(mask) == [] == mask_polygons(np.zeros((4, 5), bool))


def test_parts_of_an_instance_are_joined_by_lines_and_nothing_else():
    mask = np.zeros((40, 60), bool)
    mask[2:10, 2:12] = mask[20:38, 5:30] = mask[5:9, 40:58] = True
    joined = joined_polygon(mask_polygons(mask))
    painted = filled([joined], mask.shape)
    assert painted[mask].all()
    lines = painted & ~mask
    # From (30 - 1, 20) to (40, 8), and from (11, 20) to (11, 9): so many pixels between the parts.
    assert 10 <= lines.sum() <= 40
    (alone,) = mask_polygons(mask[:15, :15])
    assert (joined_polygon([alone]) == alone).all()
