"""Deformable attention against loops over points."""

import math

import pytest
import torch

from clipself_seg.heads.panoptic import pixel_decoder as level_samples
from clipself_seg.heads.panoptic.pixel_decoder import sample_levels, summed_rows, summed_samples

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
@pytest.mark.parametrize(
    "sample", [summed_samples, pytest.param(summed_rows, marks=pytest.mark.cpu)]
)
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
@pytest.mark.cpu
def test_points_on_and_beyond_the_border_are_the_same_in_both(place):
    values, places, weights = inputs(1, 2, 2, 2, 3)
    for axes in ((0,), (1,), (0, 1)):
        moved = places.clone()
        moved[..., axes] = place
        rows = summed_rows(values, GRIDS, moved, weights)
        if math.isfinite(place):
            torch.testing.assert_close(rows, summed_samples(values, GRIDS, moved, weights))
        assert place in (0.0, 1.0) or -0.5 < place < 1.5 or not rows.any()


@pytest.mark.cpu
def test_weights_that_are_not_numbers_stay_so():
    values, places, weights = inputs(1, 2, 2, 2, 3)
    places[0, 0], weights[0, 0] = math.nan, math.nan
    rows = summed_rows(values, GRIDS, places, weights)
    assert rows[0, 0].isnan().all() and rows[0, 1].isfinite().all()


@pytest.mark.cpu
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
