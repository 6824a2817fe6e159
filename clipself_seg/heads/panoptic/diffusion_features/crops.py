"""Cuts a canvas into square crops and joins their feature maps again.

Shapes: B images, n crops of an image, S side of a crop in pixels, C channels, h x w cells of a map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

Corner = tuple[int, int]


def crop_corners(height: int, width: int, side: int) -> list[Corner]:
    """Top left corners (y, x) in pixels of the crops that cover a canvas, row by row.

    The crops are as few as possible and side by side. The last one of an axis is shifted back inside
    the canvas, and overlaps its neighbour.

    Args:
        height: height of the canvas in pixels.
        width: width of the canvas in pixels.
        side: side of a crop in pixels, not longer than either.
    """
    rows, columns = (
        [min(i * side, length - side) for i in range(math.ceil(length / side))]
        for length in (height, width)
    )
    return list(itertools.product(rows, columns))


def cut_crops(images: Tensor, corners: Sequence[Corner], side: int) -> Tensor:
    """Crops (B * n, 3, S, S) of images (B, 3, H, W), those of an image one after another.

    Args:
        images: (B, 3, H, W).
        corners: top left corners (y, x) of the n crops of each image.
        side: side S of a crop in pixels.
    """
    cut = [images[:, :, y : y + side, x : x + side] for y, x in corners]
    return torch.stack(cut, dim=1).flatten(0, 1)


def join_crops(
    maps: Tensor, corners: Sequence[Corner], size: tuple[int, int], stride: int
) -> Tensor:
    """Joins maps of crops into the map of their canvas: in a cell, the mean of all crops that cover it.

    Args:
        maps: (B * n, C, S / stride, S / stride), in the order of `cut_crops`.
        corners: top left corners (y, x) of the n crops in pixels, multiples of the stride.
        size: height and width of the canvas in pixels.
        stride: stride of the maps in pixels.

    Returns:
        (B, C, height / stride, width / stride)
    """
    if len(corners) == 1:
        return maps
    maps_BnChw = maps.unflatten(0, (-1, len(corners)))
    h, w = maps.shape[-2:]
    rows, columns = (length // stride for length in size)
    total = maps.new_zeros(len(maps_BnChw), maps.shape[1], rows, columns)
    counts = maps.new_zeros(rows, columns)
    for index, (y, x) in enumerate(corners):
        cells = slice(y // stride, y // stride + h), slice(x // stride, x // stride + w)
        total[:, :, cells[0], cells[1]] += maps_BnChw[:, index]
        counts[cells] += 1
    return total / counts
