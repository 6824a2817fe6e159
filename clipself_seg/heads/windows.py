"""Sliding windows: where they lie, how their maps become those of one image, and the class of each pixel.

CAT-Seg's `WindowLayout` lies on a square canvas, `StridedWindows` on an image of any size. Full maps of all
classes take most of the memory, so they come in parts: class indices (k,), ascending, and their maps (k, H, W).
The caller keeps what it needs: the best class, or all scores.

Shapes: V windows or views, of r x c or s x s pixels, T or K classes, k of them, h x w cells of a window, H x W
    pixels of the image.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.runtime import QUEUES, chunk_size

AT_ONCE = 4  # classes whose maps are made together on a CPU, in whose cache they stay
Part = tuple[Tensor, Tensor]


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
            times.append(along.to(merged, non_blocking=QUEUES))
        return merged.div_(times[0][:, None] * times[1])

    def _starts(self, image_size: tuple[int, int]) -> list[list[int]]:
        """First rows, and first columns, of the windows."""
        both = []
        for length, extent in zip(image_size, self.extent(image_size)):
            steps = math.ceil((length - extent) / self.stride)
            both.append([min(step * self.stride, length - extent) for step in range(steps + 1)])
        return both


@dataclasses.dataclass(frozen=True)
class WindowLayout:
    """Windows of one size on a square canvas; the numbers are those of CAT-Seg.

    Attributes:
        size: side of a window in pixels.
        overlap: fraction of the side that neighbours have in common, in [0, 1).
        canvas: side of the canvas in pixels.
    """

    size: int = 384
    overlap: float = 0.333
    canvas: int = 640

    @property
    def stride(self) -> int:
        """Pixels from a window to the next one."""
        return int(self.size * (1 - self.overlap))

    @property
    def windows(self) -> StridedWindows:
        """The windows of the canvas."""
        return StridedWindows(self.size, self.stride)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Top left corners (y, x) of the windows, row by row."""
        return self.windows.corners((self.canvas, self.canvas))

    def views(self, image_3HW: Tensor) -> Tensor:
        """The windows and, last, the whole image, (V, 3, size, size) float32; pixels stay 0..255."""
        images = image_3HW[None].float()
        windows = self.windows.cut(resize(images, self.canvas)[0], self.corners)
        return torch.cat([windows, resize(images, self.size)])

    def merge(self, logits_Vkss: Tensor) -> Tensor:
        """Logits of the `views` -> probabilities (k, canvas, canvas).

        The sigmoid is taken at the size of the window, behind the first resizing.
        """
        probabilities = resize(logits_Vkss, self.size).sigmoid_()
        merged = self.windows.mean(probabilities[:-1], (self.canvas, self.canvas))
        return merged.mul_(0.5).add_(resize(probabilities[-1:], self.canvas)[0], alpha=0.5)


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


def best_class(parts: Iterable[Part], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Index (H, W) int64 of the class with the highest probability, and that probability (H, W).

    Of equally probable classes the first one wins. NaN counts as the highest probability, so that it
    shows.

    Args:
        parts: class indices and maps, of at least one class.
        size: (H, W) that the maps are resized to.
    """
    best = labels = None
    for classes, maps in parts:
        value, index = resize(maps[None], size)[0].max(dim=0)
        if best is None or labels is None:
            # A class that is in no part has probability 0, and class 0 is the first of those.
            best = torch.zeros_like(value)
            labels = torch.zeros_like(index)
        better = (value > best) | value.isnan()
        best = torch.maximum(best, value)
        labels = torch.where(better, classes[index], labels)
    assert best is not None and labels is not None
    return labels, best


def all_scores(parts: Iterable[Part], size: tuple[int, int], count: int) -> Tensor:
    """Probabilities (T, H, W), 0 for the classes that are in no part.

    Args:
        parts: class indices and maps, of at least one class.
        size: (H, W) that the maps are resized to.
        count: T.
    """
    scores = None
    for classes, maps in parts:
        if scores is None:
            scores = maps.new_zeros(count, *size)
        scores[classes] = resize(maps[None], size)[0]
    assert scores is not None
    return scores


def mirrored_mean(
    parts: Iterable[Part], mirrored: Iterable[Part], size: tuple[int, int]
) -> Iterator[Part]:
    """Class indices and the mean of two maps (k, H, W), of an image and of its mirrored version.

    A mirrored image gives exactly the mirrored mean, since only sums of two numbers change their order.

    Args:
        parts: class indices and maps of the image.
        mirrored: class indices and maps of the mirrored image, of the same classes in the same parts.
        size: (H, W) that the maps are resized to before they are averaged.
    """
    for (classes, maps), (_, others) in zip(parts, mirrored, strict=True):
        own, other = (resize(one[None], size)[0] for one in (maps, others))
        yield classes, (own + other.flip(-1)) / 2


def segmentation(
    passes: Sequence[Iterable[Part]],
    size: tuple[int, int],
    count: int,
    output: str,
    classes: Tensor | None = None,
) -> dict[str, Tensor]:
    """The result of an image, under Detectron2's names.

    Args:
        passes: parts of the image, class indices and maps of at least one class; and those of the mirrored image, if
            they are to be averaged, see `mirrored_mean`.
        size: (H, W) that the maps are resized to.
        count: number of classes.
        output: "scores" or "labels".
        classes: classes that the indices of the parts stand for; None: themselves.

    Returns:
        {"sem_seg": (count, H, W)}, or for labels {"sem_seg_labels": (H, W) int64, "sem_seg_best": their scores}.
    """
    parts = passes[0] if len(passes) == 1 else mirrored_mean(passes[0], passes[1], size)
    if classes is not None:
        parts = ((classes[own], maps) for own, maps in parts)
    if output == "scores":
        return {"sem_seg": all_scores(parts, size, count)}
    if output != "labels":
        raise ValueError(f'no output "{output}": choose from scores, labels')
    labels, best = best_class(parts, size)
    return {"sem_seg_labels": labels, "sem_seg_best": best}
