"""Where windows lie, and the mean and the best class of what they say: by hand and against loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipself_seg.heads.windows import StridedWindows, all_scores, best_class, window_parts


@pytest.mark.parametrize(
    "size, stride, length, starts, extent",
    [
        (4, 2, 9, [0, 2, 4, 5], 4),  # the last one ends with the image
        (4, 2, 8, [0, 2, 4], 4),
        (4, 4, 5, [0, 1], 4),
        (4, 2, 4, [0], 4),
        (4, 2, 3, [0], 3),  # an image that is smaller than a window
        (0, 2, 9, [0], 9),  # the whole
    ],
)
def test_windows_cover_a_side(size, stride, length, starts, extent):
    windows = StridedWindows(size, stride)
    assert windows.corners((length, 1)) == [(start, 0) for start in starts]
    assert windows.corners((1, length)) == [(0, start) for start in starts]
    assert windows.extent((length, 1)) == (extent, 1)


def test_windows_that_are_put_back_give_the_image():
    image = torch.randn(3, 11, 14, dtype=torch.float64)
    windows = StridedWindows(5, 3)
    maps = windows.cut(image, windows.corners((11, 14)))
    assert maps.shape == (12, 3, 5, 5)
    torch.testing.assert_close(windows.mean(maps, (11, 14)), image)


def naive(cells, windows, patch, image_size):
    """Maps (K, H, W), a window, a class and a pixel at a time."""
    rows, columns = windows.extent(image_size)
    sums = torch.zeros(cells.shape[1], *image_size, dtype=cells.dtype)
    times = torch.zeros(image_size)
    for window, (top, left) in zip(cells, windows.corners(image_size)):
        for y in range(rows):
            for x in range(columns):
                times[top + y, left + x] += 1
        for label, grid in enumerate(window):
            scale = {"scale_factor": patch, "mode": "bilinear"}
            large = F.interpolate(grid[None, None], **scale)[0, 0]
            sums[label, top : top + rows, left : left + columns] += large[:rows, :columns]
    return sums / times


@pytest.mark.parametrize("image_size", [(9, 13), (6, 6), (3, 10)])
@pytest.mark.cpu
def test_parts_are_those_of_loops_over_windows_and_classes(image_size):
    windows, patch = StridedWindows(6, 3), 2
    count = len(windows.corners(image_size))
    rows, columns = windows.extent(image_size)
    grid = math.ceil(rows / patch), math.ceil(columns / patch)
    cells = torch.rand(count, 9, *grid, dtype=torch.float64)
    expected = naive(cells, windows, patch, image_size)

    def parts():
        return window_parts(cells, windows, patch, image_size, (8, 8))

    assert [classes.tolist() for classes, _ in parts()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    torch.testing.assert_close(all_scores(parts(), image_size, 9), expected)
    labels, best = best_class(parts(), image_size)
    torch.testing.assert_close(best, expected.amax(0))
    assert labels.equal(expected.argmax(0))


class Largest(TorchDispatchMode):
    """The most numbers of a tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return made


@pytest.mark.cpu
def test_labels_of_many_classes_need_no_maps_of_all():
    windows, size = StridedWindows(16, 16), (32, 32)
    cells = torch.rand(4, 847, 2, 2)
    with Largest() as largest:
        best_class(window_parts(cells, windows, 8, size, size), size)
    assert largest.numbers <= cells.numel() < 847 * 32 * 32 / 32


@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_number_is_not_hidden_by_other_classes(place):
    scores = torch.tensor([0.2, 0.9, 0.4])
    scores[place] = math.nan
    parts = [(torch.tensor([i]), scores[i].expand(1, 2, 3)) for i in range(3)]
    labels, best = best_class(parts, (2, 3))
    assert best.isnan().all() and labels.eq(place).all()


def test_the_first_of_equal_classes_wins():
    parts = [(torch.tensor([i]), torch.full((1, 2, 3), 0.5)) for i in (1, 3)]
    labels, best = best_class(parts, (4, 6))
    assert labels.eq(1).all() and best.eq(0.5).all()
