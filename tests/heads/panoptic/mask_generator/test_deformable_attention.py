"""Deformable attention: its values, gradients, and where untrained heads look."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.heads.panoptic.deformable_attention import DeformableAttention

pytestmark = pytest.mark.usefixtures("two_threads")

GRIDS = [(2, 3), (4, 5)]


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
