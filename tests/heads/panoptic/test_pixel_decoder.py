"""Deformable attention against loops over points, and the maps that CLIP gives a generator."""

from __future__ import annotations

import math

import pytest
import torch

from clipself_seg.clip import load_clip
from clipself_seg.heads.panoptic import pixel_decoder as level_samples
from clipself_seg.heads.panoptic.frozen_clip import CLIPPyramid
from clipself_seg.heads.panoptic.pixel_decoder import (
    STRIDES,
    sample_levels,
    summed_rows,
    summed_samples,
)

pytestmark = pytest.mark.usefixtures("two_threads")

GRIDS = [(2, 3), (4, 5)]


def pixel(grid_map: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """The bilinear sample at (x, y) in [0, 1] of a map (C, h, w); zeros beyond it."""
    _, height, width = grid_map.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = torch.zeros_like(grid_map[:, 0, 0])
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * grid_map[:, i, j]
    return total


@pytest.mark.parametrize("at_once", [level_samples.POINTS_AT_ONCE, 20])  # 20: a query at once
@pytest.mark.parametrize("sample", [summed_samples, summed_rows])
def test_samples_equal_a_loop(sample, at_once, monkeypatch):
    monkeypatch.setattr(level_samples, "POINTS_AT_ONCE", at_once)
    batch, queries, heads, points, width = 2, 3, 2, 4, 6
    cells = sum(h * w for h, w in GRIDS)
    values = torch.randn(batch, cells, width, dtype=torch.float64)
    shape = (batch, queries, heads, len(GRIDS), points)
    places = torch.rand(*shape, 2, dtype=torch.float64) * 1.6 - 0.3  # some beyond the map
    weights = torch.randn(shape, dtype=torch.float64)
    expected = torch.zeros(batch, queries, width, dtype=torch.float64)
    for b, q, m, v, p in torch.cartesian_prod(*(torch.arange(n) for n in shape)).tolist():
        start = sum(h * w for h, w in GRIDS[:v])
        h, w = GRIDS[v]
        own = slice(m * width // heads, (m + 1) * width // heads)
        grid_map = values[b, start : start + h * w, own].T.reshape(-1, h, w)
        x, y = places[b, q, m, v, p].tolist()
        expected[b, q, own] += weights[b, q, m, v, p] * pixel(grid_map, x, y)
    torch.testing.assert_close(sample(values, GRIDS, places, weights), expected)


def inputs(*shape, dtype=torch.float32):
    cells = sum(h * w for h, w in GRIDS)
    values = torch.randn(shape[0], cells, 8, dtype=dtype)
    return values, torch.rand(*shape, 2, dtype=dtype), torch.rand(shape, dtype=dtype)


@pytest.mark.parametrize("place", [-1e30, -0.2, 0.0, 1.0, 1.2, math.inf])
def test_points_on_and_beyond_the_border_are_the_same_in_both(place):
    values, places, weights = inputs(1, 2, 2, 2, 3)
    for axes in ((0,), (1,), (0, 1)):
        moved = places.clone()
        moved[..., axes] = place
        rows = summed_rows(values, GRIDS, moved, weights)
        if math.isfinite(place):
            torch.testing.assert_close(rows, summed_samples(values, GRIDS, moved, weights))
        assert place in (0.0, 1.0) or -0.5 < place < 1.5 or not rows.any()


def test_weights_that_are_not_numbers_stay_so():
    values, places, weights = inputs(1, 2, 2, 2, 3)
    places[0, 0], weights[0, 0] = math.nan, math.nan
    rows = summed_rows(values, GRIDS, places, weights)
    assert rows[0, 0].isnan().all() and rows[0, 1].isfinite().all()


def test_rows_are_taken_only_without_gradients_and_no_queries_give_no_sums(monkeypatch):
    taken = []
    original = level_samples.summed_rows
    monkeypatch.setattr(level_samples, "summed_rows", lambda *a: taken.append(1) or original(*a))
    values, places, weights = inputs(2, 3, 2, 2, 2)
    sample_levels(values.requires_grad_(), GRIDS, places, weights)
    assert not taken
    with torch.no_grad():
        sample_levels(values, GRIDS, places, weights)
        assert sample_levels(values, GRIDS, places[:, :0], weights[:, :0]).shape == (2, 0, 8)
    assert len(taken) == 2


@pytest.mark.parametrize(("name", "stride"), [("ViT-Mini-8", 8), ("ViT-B-16", 16)])
def test_maps_have_their_strides_and_channels(name, stride):
    pyramid = CLIPPyramid(load_clip(name, None), channels=32)
    assert pyramid.stride == stride and pyramid.channels == dict.fromkeys(STRIDES, 32)
    with torch.no_grad():
        maps = pyramid(torch.rand(2, 3, 64, 96))
    shapes = {n: (2, 32, 64 // s, 96 // s) for n, s in STRIDES.items()}
    assert {n: tuple(m.shape) for n, m in maps.items()} == shapes


def test_a_patch_of_14_is_enlarged_to_a_stride_of_16():
    clip = load_clip("ViT-Mini-8", None)
    pyramid = CLIPPyramid(clip, channels=32)
    assert pyramid.stride == 8
    sizes = []
    clip.visual.patch_size = 7  # as 14 is to 16
    clip.visual.features = lambda x, names: sizes.append(tuple(x.shape)) or dict.fromkeys(
        names, torch.zeros(1, 128, 8, 12)
    )
    pyramid(torch.rand(1, 3, 64, 96))
    assert sizes == [(1, 3, 56, 84)]


def test_blocks_default_to_quarters_of_the_depth():
    clip = load_clip("ViT-B-16", None)
    assert CLIPPyramid(clip).names == ["block2", "block5", "block8", "block11"]
    assert CLIPPyramid(clip, blocks=(1, 7)).names == ["block1", "block7"]


def test_clip_is_not_registered_and_stays_without_gradients():
    clip = load_clip("ViT-Mini-8", None)
    pyramid = CLIPPyramid(clip, channels=32)
    assert not any("clip" in name or "visual" in name for name in pyramid.state_dict())
    sum(m.sum() for m in pyramid(torch.rand(1, 3, 64, 64)).values()).backward()
    assert all(p.grad is not None for p in pyramid.parameters())
    assert all(p.grad is None for p in clip.parameters())


def test_the_stem_sees_what_a_patch_hides():
    pyramid = CLIPPyramid(load_clip("ViT-Mini-8", None), channels=32).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        whole = pyramid(images)
        pyramid.stem[0][0].weight.zero_()
        blind = pyramid(images)
    assert not torch.equal(whole["s2"], blind["s2"]) and torch.equal(whole["s5"], blind["s5"])
