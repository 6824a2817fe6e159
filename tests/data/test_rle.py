"""Masks as pycocotools writes them pass; those that would make it write beyond its memory do not."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as rle

from clipself_seg.data.masks import (
    _decompress,
    check_segmentation,
    encode_masks,
    encode_segmentation,
)


def test_runs_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for fraction in (0, 0.001, 0.1, 0.5, 0.999, 1):
        for height, width in ((1, 1), (40, 57), (300, 211)):
            mask = np.asfortranarray(rng.random((height, width)) < fraction, np.uint8)
            coded = rle.encode(mask)
            text = coded["counts"].decode()
            flat = mask.flatten(order="F")
            edges = np.flatnonzero(np.diff(flat)) + 1
            lengths = np.diff([0, *([0] if flat[0] else []), *edges, len(flat)])
            assert _decompress(text).tolist() == lengths.tolist()
            check_segmentation({"size": coded["size"], "counts": text}, height, width)
            check_segmentation({"size": [height, width], "counts": lengths.tolist()}, height, width)
    check_segmentation([[-3, 4.5, 60, 4, 30, 45.0]], 40, 57)


@pytest.mark.parametrize(
    "value, words",
    [
        ({"size": [4, 3], "counts": "12100001"}, "do not fill"),
        ({"size": [4, 3], "counts": "0000000000000000000000000000000000000"}, "do not fill"),
        ({"size": [4, 3], "counts": ""}, "do not fill"),
        ({"size": [4, 3], "counts": "P" * 9 + "1"}, "too long"),
        ({"size": [4, 3], "counts": "1P"}, "no text of an RLE"),
        ({"size": [4, 3], "counts": "\x7f1"}, "no text of an RLE"),
        ({"size": [4, 3], "counts": "ä"}, "ascii"),
        ({"size": [3_000_000_000, 4], "counts": "12100000"}, "not that of the image"),
        ({"size": [4, 3], "counts": [2, 5, 6]}, "do not fill"),
        ({"size": [4, 3], "counts": [2, -5, 15]}, "do not fill"),
        ({"size": [4, 3], "counts": [2, 10**30]}, "no whole number"),
        ({"size": [4, 3], "counts": [11, True]}, "no whole number"),
        ([[3.0, 4.0, 30.0, 2147483648, 30.0, 20.0]], "far from the image"),
        ([[float("nan"), 4.0, 1, 2, 3, 2]], "nowhere"),
        ([[0, 10**400, 1, 2, 3, 2]], "far from the image"),
        ([[[1]]], "no list of numbers"),
        ([[]], "too few points"),
        ([[1, 2, 3, 2]], "too few points"),
        ([[1, 2, 3, 2, 1, 2], [1, 2]], "too few points"),
        ([], "neither polygons nor"),
        ("12100000", "neither polygons nor"),
    ],
)
def test_what_is_no_mask_of_the_image_is_refused(value, words):
    with pytest.raises(ValueError, match=words):
        check_segmentation(value, 4, 3)


@pytest.mark.parametrize("size", [(0, 3), (-4, 3), (1 << 20, 1 << 20)])
def test_images_without_pixels_or_with_too_many_are_refused(size):
    with pytest.raises(ValueError, match="pixels"):
        check_segmentation([[1, 2, 3, 4, 5, 6]], *size)


def test_lines_alone_are_an_empty_mask_of_any_size_that_an_image_has():
    line = [[0, 0, 5, 5]]
    empty = rle.encode(np.zeros((6, 8), np.uint8, order="F"))
    assert encode_segmentation(line, 6, 8) == empty
    with pytest.raises(ValueError, match="the image has"):
        encode_segmentation(line, 2**20, 2**20)


def test_encoded_masks_are_those_of_pycocotools_to_the_byte():
    random = np.random.default_rng(0)
    masks = np.zeros((12, 13, 17), dtype=bool)
    masks[1] = True
    for mask in masks[2:]:
        top, left = random.integers(0, (12, 16))
        inner = mask[top : random.integers(top, 14), left : random.integers(left, 18)]
        inner[:] = random.random(inner.shape) < 0.6
    masks[2, -1, -1] = masks[3, 0, 0] = True
    wanted = [rle.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    assert encode_masks(masks) == wanted
    assert encode_masks(masks[:, ::-1, ::-1])[1] == wanted[1]
