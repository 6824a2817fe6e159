"""Attention over the classes: under autocast, sums stay in float32."""

from __future__ import annotations

import torch

from clipself_seg.heads.cat_seg.class_aggregation import linear_attention


def test_linear_attention_rounds_its_result_alone():
    q, k, v = torch.randn(3, 2, 4, 200, 8).bfloat16()
    padding = torch.randn(4, 1, 8).bfloat16(), torch.randn(4, 1, 8).bfloat16(), 56
    exact = (padding[0].double(), padding[1].double(), 56)
    expected = linear_attention(q.double(), k.double(), v.double(), exact)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_attention(q, k, v, padding)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=2**-8)
