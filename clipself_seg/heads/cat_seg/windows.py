"""Sliding windows: where they lie, and how their class probabilities become those of one image.

The published evaluation of CAT-Seg: the image is resized to a square canvas and cut into overlapping
windows; one more view is the whole image. Windows are averaged where they overlap, and the result
with the whole view.

Shapes: V views, k classes, s x s logits of a view, H x W pixels of the original image.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.errors import InputError


@dataclasses.dataclass(frozen=True)
class WindowLayout:
    """Windows of one size on a square canvas.

    Attributes:
        size: side of a window in pixels.
        overlap: fraction of the side that neighbours have in common, in [0, 1).
        canvas: side of the canvas in pixels.
    """

    size: int = 384
    overlap: float = 0.333
    canvas: int = 640

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.overlap < 1:
            raise InputError(
                f"windows of {self.size} pixels with an overlap of {self.overlap}: TEST.WINDOW.SIZE is at "
                "least 1, and OVERLAP in [0, 1)"
            )
        stride = self.stride
        if self.canvas < self.size or stride < 1 or (self.canvas - self.size) % stride:
            raise InputError(
                f"windows of {self.size} pixels with an overlap of {self.overlap} (a stride of "
                f"{stride}) do not cover a canvas of {self.canvas}: TEST.WINDOW.CANVAS must be "
                f"SIZE plus a multiple of the stride, such as {self.size + max(stride, 1)}"
            )

    @property
    def stride(self) -> int:
        """Pixels from a window to the next one."""
        return int(self.size * (1 - self.overlap))

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Top left corners (y, x) of the windows, row by row."""
        return list(itertools.product(self._starts, self._starts))

    @property
    def _starts(self) -> range:
        return range(0, self.canvas - self.size + 1, self.stride)

    def views(self, image_3HW: Tensor) -> Tensor:
        """The windows and, last, the whole image, (V, 3, size, size) float32; pixels stay 0..255."""
        square = resize(image_3HW[None].float(), self.canvas)[0]
        size = self.size
        windows = [square[:, y : y + size, x : x + size] for y, x in self.corners]
        return torch.stack([*windows, resize(image_3HW[None].float(), size)[0]])

    def merge(self, logits_Vkss: Tensor) -> Tensor:
        """Logits of the `views` -> probabilities (k, canvas, canvas).

        The sigmoid is taken at the size of the window, behind the first resizing.
        """
        probabilities = resize(logits_Vkss, self.size).sigmoid_()
        merged = probabilities.new_zeros(probabilities.shape[1], self.canvas, self.canvas)
        for window, (y, x) in zip(probabilities, self.corners):
            merged[:, y : y + self.size, x : x + self.size] += window
        along = torch.zeros(self.canvas)
        for start in self._starts:
            along[start : start + self.size] += 1
        along = along.to(merged, non_blocking=True)
        times = along[:, None] * along  # windows over each pixel
        whole = resize(probabilities[-1:], self.canvas)[0]
        return merged.mul_(0.5 / times).add_(whole, alpha=0.5)


def resize(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resizes maps (B, C, h, w) bilinearly without antialiasing; returns maps of that size as they are.

    Args:
        maps: of floating point.
        size: rows and columns, or the side of a square.
    """
    wanted = (size, size) if isinstance(size, int) else size
    if tuple(maps.shape[-2:]) == tuple(wanted):
        return maps
    return F.interpolate(maps, wanted, mode="bilinear", align_corners=False)
