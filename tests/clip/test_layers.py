"""QuickGELU, written over its input without gradients, heads copied apart, and keys that nothing attends to."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.clip import layers
from clipself_seg.clip.linear import stock_linear


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


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_heads_copied_apart_has_the_same_bits(monkeypatch, masked):
    torch.manual_seed(0)
    tokens, heads = 70, 3
    q, k, v = (
        layers.split_heads(x, heads) for x in torch.randn(2, tokens, 3 * 48).chunk(3, dim=-1)
    )
    mask = torch.rand(tokens, tokens) < 0.7 if masked else None
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    naive = scores.softmax(dim=-1) @ v
    given = []
    fused = F.scaled_dot_product_attention

    def seen(*inputs, **how):
        given.append(all(x.is_contiguous() for x in inputs))
        return fused(*inputs, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    with torch.no_grad():
        few = layers.attention(q, k, v, mask=mask)
        monkeypatch.setattr(layers, "MANY_TOKENS", tokens)
        many = layers.attention(q, k, v, mask=mask)
        layers.attention(q[:, :, :4], k, v)
        with stock_linear():
            layers.attention(q, k, v)
    layers.attention(q, k, v)  # with gradients
    assert given == [False, True, False, False, False]
    assert torch.equal(few, many)
    torch.testing.assert_close(many, naive)


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
