"""Masks are encoded to the very bytes of pycocotools."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as rle

from clipself_seg.data.masks import encode_masks


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
