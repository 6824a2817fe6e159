"""Cosines of the cost volume: in float32, also under autocast."""

from __future__ import annotations

import torch

from clipself_seg.heads.cat_seg.cost_volume import cosine_cost


def test_cosines_under_autocast_are_those_of_float32():
    dense, text = torch.randn(64, 5, 7), torch.randn(9, 2, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = cosine_cost(dense, text)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cosine_cost(dense, text), atol=1e-6, rtol=0)
