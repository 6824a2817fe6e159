"""QuickGELU, written over its input without gradients."""

from __future__ import annotations

import torch

from clipself_seg.clip import layers


def test_quick_gelu_is_the_same_with_and_without_gradients(monkeypatch, two_threads):
    monkeypatch.setattr(layers, "CPU_NUMBERS", 10)  # three rows at once
    x = torch.randn(2, 4, 3)
    expected = x * torch.sigmoid(1.702 * x)
    torch.testing.assert_close(layers.QuickGELU()(x), expected)
    with torch.no_grad():
        overwritten = layers.QuickGELU()(x)
        assert layers.QuickGELU()(x[:0]).shape == (0, 4, 3)
    assert torch.equal(overwritten, x)
    torch.testing.assert_close(x, expected)
