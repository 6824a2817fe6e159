"""QuickGELU, written over its input without gradients; what the backward pass computes again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.clip import layers
from clipself_seg.clip.eva import SwiGLU


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


def gradients(function, inputs, parameters):
    """Gradients of a sum, and the bytes that the backward pass keeps."""
    kept = {}
    leaves = [x.clone().requires_grad_() for x in inputs]

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function(*leaves)
    grads = torch.autograd.grad((result**2).sum(), [*leaves, *parameters])
    return [result, *grads], sum(kept.values())


@pytest.mark.parametrize("kind", ["SwiGLU", "QuickGELU"])
def test_what_is_computed_again_is_not_kept_and_has_the_same_gradients(kind):
    x = torch.randn(64, 16)
    mlp = SwiGLU(width=16, hidden=40)

    def plain(x):
        if kind == "QuickGELU":
            return x * (1.702 * x).sigmoid()
        return mlp.w3(mlp.ffn_ln(F.silu(mlp.w1(x)) * mlp.w2(x)))

    ours = mlp if kind == "SwiGLU" else layers.QuickGELU()
    parameters = list(ours.parameters())
    (expected, more), (found, less) = (gradients(f, [x], parameters) for f in (plain, ours))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    hidden = x.shape[0] * (40 if kind == "SwiGLU" else 16) * 4
    assert less <= more - (2 if kind == "SwiGLU" else 1) * hidden


def test_nothing_is_computed_again_where_no_gradient_flows():
    calls = []
    layers.recomputed(lambda x: calls.append(1) or x, torch.ones(2))
    with torch.no_grad():
        layers.recomputed(lambda x: calls.append(1) or x, torch.ones(2, requires_grad=True))
    assert len(calls) == 2
