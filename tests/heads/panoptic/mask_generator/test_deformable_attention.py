"""Deformable attention against a loop over every sample, and where untrained heads look."""

from __future__ import annotations

import math

import pytest
import torch

from clipself_seg.heads.panoptic.mask_generator.deformable_attention import (
    DeformableAttention,
    sample_levels,
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


def test_samples_equal_a_loop():
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
    torch.testing.assert_close(sample_levels(values, GRIDS, places, weights), expected)


def test_constant_values_come_back_where_no_sample_leaves_the_map():
    attention = DeformableAttention(width=8, heads=2, levels=2, points=1)
    torch.nn.init.zeros_(attention.sampling_offsets.bias)
    for linear in (attention.value_proj, attention.output_proj):
        torch.nn.init.eye_(linear.weight)
    values = torch.arange(8.0).expand(1, 26, 8)
    attended = attention(torch.randn(1, 3, 8), torch.full((3, 2), 0.5), values, GRIDS)
    torch.testing.assert_close(attended, values[:, :3])


def test_untrained_heads_look_in_directions_of_their_own_ever_further():
    attention = DeformableAttention(width=8, heads=4, levels=2, points=3)
    offsets = attention.sampling_offsets.bias.view(4, 2, 3, 2)
    rays = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for level in (0, 1):
        for point in (0, 1, 2):
            actual = offsets[:, level, point]
            torch.testing.assert_close(actual, (point + 1) * rays, atol=1e-6, rtol=0)


def test_every_input_gets_a_gradient():
    attention = DeformableAttention(width=8, heads=2, levels=2, points=2)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.1)
    torch.nn.init.normal_(attention.attention_weights.weight, std=0.1)
    queries, values = (torch.randn(1, n, 8).requires_grad_() for n in (4, 26))
    attention(queries, torch.rand(4, 2), values, GRIDS).square().sum().backward()
    for tensor in (queries, values, *attention.parameters()):
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0
