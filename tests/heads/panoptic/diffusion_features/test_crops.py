"""Tiling: how many crops there are, where they lie, and that cutting and joining give the canvas back."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.heads.diffusion.source import crop_corners, cut_crops, join_crops


@pytest.mark.parametrize(
    "height, width, count",
    [(1024, 1408, 6), (1024, 1536, 6), (1024, 1024, 4), (832, 2560, 10), (512, 512, 1)],
)
def test_counts_of_the_official_canvases(height, width, count):
    assert len(crop_corners(height, width, 512)) == count


def test_the_last_crop_is_shifted_back_inside():
    rows, columns = (0, 512), (0, 512, 896)
    assert crop_corners(1024, 1408, 512) == [(y, x) for y in rows for x in columns]


@pytest.mark.parametrize("size", [(64, 64), (64, 192), (192, 128), (256, 320)])
@pytest.mark.parametrize("stride", [1, 4, 32])
def test_joined_crops_are_the_canvas(size, stride):
    images = torch.rand(2, 3, *size).round(decimals=2)
    corners = crop_corners(*size, 64)
    maps = cut_crops(images, corners, 64)[:, :, ::stride, ::stride]
    joined = join_crops(maps, corners, size, stride)
    torch.testing.assert_close(joined, images[:, :, ::stride, ::stride])


def test_constant_maps_stay_constant_and_overlaps_are_means():
    corners = crop_corners(64, 160, 64)
    assert corners == [(0, 0), (0, 64), (0, 96)]
    maps = torch.tensor([1.0, 2.0, 6.0])[:, None, None, None].expand(3, 5, 2, 2)
    joined = join_crops(maps, corners, (64, 160), 32)
    assert joined.shape == (1, 5, 2, 5)
    assert joined[0, 0, 0].tolist() == [1, 1, 2, 4, 6]
    torch.testing.assert_close(
        join_crops(torch.full((3, 5, 2, 2), 7.0), corners, (64, 160), 32),
        torch.full((1, 5, 2, 5), 7.0),
    )


def test_joining_equals_a_loop_over_cells_and_gradients_are_fractions():
    size, side, stride = (128, 160), 96, 32
    corners = crop_corners(*size, side)
    maps = torch.randn(2 * len(corners), 3, 3, 3, requires_grad=True)
    joined = join_crops(maps, corners, size, stride)
    for image, row, column in ((0, 0, 0), (1, 1, 2), (0, 3, 4), (1, 2, 1)):
        covering = [
            maps[image * len(corners) + i, :, row - y // stride, column - x // stride]
            for i, (y, x) in enumerate(corners)
            if 0 <= row - y // stride < 3 and 0 <= column - x // stride < 3
        ]
        torch.testing.assert_close(joined[image, :, row, column], torch.stack(covering).mean(dim=0))
    (gradient,) = torch.autograd.grad(joined.sum(), maps)
    torch.testing.assert_close(gradient.sum(), torch.tensor(float(joined.numel())))
