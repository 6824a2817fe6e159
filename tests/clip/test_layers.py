"""QuickGELU, written over its input without gradients, and keys that nothing attends to."""

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


def test_tokens_that_are_no_keys_change_nothing_but_themselves():
    torch.manual_seed(0)
    attention = layers.PackedAttention(width=16, heads=2)
    torch.nn.init.normal_(attention.in_proj_weight, std=0.3)
    x = torch.randn(2, 5, 16)
    lengths = torch.tensor([3, 5])
    keys = torch.arange(5) < lengths[:, None]
    padded = attention(x, keys_BL=keys)
    for row, length in enumerate(lengths.tolist()):
        alone = attention(x[row : row + 1, :length])
        torch.testing.assert_close(padded[row : row + 1, :length], alone)
    assert (padded[0] - attention(x)[0]).abs().max() > 1e-3  # the keys matter
