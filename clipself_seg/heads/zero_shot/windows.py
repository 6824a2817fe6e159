"""Evenly spaced windows on an image of any size, and the mean of their predictions where they overlap.

`heads.cat_seg.windows` has CAT-Seg's, which lie on a square canvas.

Shapes: V windows of r x c pixels, k classes, h x w cells of a window, H x W pixels of the image.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from clipself_seg.clip.runtime import chunk_size
from clipself_seg.errors import InputError
from clipself_seg.heads.cat_seg.class_maps import AT_ONCE, Part
from clipself_seg.heads.cat_seg.windows import resize


@dataclasses.dataclass(frozen=True)
class StridedWindows:
    """Square windows; the last one of a row or column is moved back, so that it ends with the image.

    A side of the image that is shorter than a window is that of the window.

    Attributes:
        size: side of a window in pixels; 0 is the whole image as one window.
        stride: pixels from one window to the next.
    """

    size: int = 336
    stride: int = 112

    def __post_init__(self) -> None:
        if self.size < 0 or self.stride < 1 or 0 < self.size < self.stride:
            raise InputError(
                f"windows of {self.size} pixels at a stride of {self.stride} do not cover an image: "
                "MODEL.ZERO_SHOT.WINDOW is 0 or more (0 is the whole image), and STRIDE from 1 to WINDOW"
            )

    def extent(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows r and columns c of each window of an image (H, W)."""
        height, width = image_size
        return min(self.size or height, height), min(self.size or width, width)

    def corners(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Top left corners (y, x) of the windows of an image (H, W), row by row."""
        rows, columns = self._starts(image_size)
        return list(itertools.product(rows, columns))

    def cut(self, image_CHW: Tensor, corners: Sequence[tuple[int, int]]) -> Tensor:
        """Windows (V, C, r, c) of an image.

        Args:
            image_CHW: the image.
            corners: V of its corners.
        """
        rows, columns = self.extent((image_CHW.shape[1], image_CHW.shape[2]))
        return torch.stack([image_CHW[:, y : y + rows, x : x + columns] for y, x in corners])

    def mean(self, maps_Vkrc: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Maps (k, H, W), each pixel the mean of all windows that have it.

        Args:
            maps_Vkrc: a map of each window, in the order of `corners`.
            image_size: (H, W).
        """
        rows, columns = self.extent(image_size)
        merged = maps_Vkrc.new_zeros(maps_Vkrc.shape[1], *image_size)
        for window, (y, x) in zip(maps_Vkrc, self.corners(image_size), strict=True):
            merged[:, y : y + rows, x : x + columns] += window
        times = []  # windows over each row, and over each column
        for starts, extent, length in zip(self._starts(image_size), (rows, columns), image_size):
            along = torch.zeros(length)
            for start in starts:
                along[start : start + extent] += 1
            times.append(along.to(merged, non_blocking=True))
        return merged.div_(times[0][:, None] * times[1])

    def _starts(self, image_size: tuple[int, int]) -> list[list[int]]:
        """First rows, and first columns, of the windows."""
        both = []
        for length, extent in zip(image_size, self.extent(image_size)):
            steps = math.ceil((length - extent) / self.stride)
            both.append([min(step * self.stride, length - extent) for step in range(steps + 1)])
        return both


def window_parts(
    cells_VKhw: Tensor,
    windows: StridedWindows,
    patch: int,
    image_size: tuple[int, int],
    size: tuple[int, int],
) -> Iterator[Part]:
    """Class indices and their maps (k, H, W), some classes at a time, so that memory does not grow with all K.

    Args:
        cells_VKhw: numbers of every cell of every window, of all classes.
        windows: where the windows lie.
        patch: side of a cell in pixels; the last cells of a row or column may reach over the window's border.
        image_size: (H, W) of the image that was cut.
        size: rows and columns that the caller resizes the maps to, on which their number in memory depends.
    """
    count, grid = len(cells_VKhw), (cells_VKhw.shape[2], cells_VKhw.shape[3])
    rows, columns = windows.extent(image_size)
    pixels = (grid[0] * patch, grid[1] * patch)
    numbers = 2 * count * math.prod(pixels) + math.prod(image_size) + math.prod(size)
    together = chunk_size(cells_VKhw.device, AT_ONCE, numbers)
    classes = torch.arange(cells_VKhw.shape[1], device=cells_VKhw.device)
    for part, cells_Vkhw in zip(classes.split(together), cells_VKhw.split(together, dim=1)):
        maps_Vkrc = resize(cells_Vkhw, pixels)[..., :rows, :columns]
        yield part, windows.mean(maps_Vkrc, image_size)
