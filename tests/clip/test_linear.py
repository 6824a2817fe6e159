"""The linear layer through oneDNN is torch's own, in values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from clipself_seg.clip import linear as module
from clipself_seg.clip.linear import LARGEST_WEIGHT, Choice, Linear, linear, stock_linear
from clipself_seg.errors import InputError


def tensors(rows=(3, 50), inputs=48, outputs=80, bias=True):
    x, weight = torch.randn(*rows, inputs), torch.randn(outputs, inputs)
    return x, weight, torch.randn(outputs) if bias else None


@pytest.fixture(autouse=True)
def convolution(monkeypatch):
    """On every machine, as on one where convolutions pay."""
    monkeypatch.setattr(module, "choice", lambda: Choice(True, "test"))


@pytest.fixture
def products(monkeypatch):
    """The products that oneDNN computed."""
    taken, original = [], module._product
    monkeypatch.setattr(module, "_product", lambda *args: taken.append(1) or original(*args))
    return taken


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(64,), (3, 50), (2, 5, 20)])
def test_values_are_those_of_torch(rows, bias, products):
    x, weight, shift = tensors(rows, bias=bias)
    result = linear(x, weight, shift)
    assert len(products) == 1 and result.is_contiguous()
    torch.testing.assert_close(result, F.linear(x, weight, shift), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("trained", ["xwb", "x", "w", "b", "xb", "wb", "xw"])
def test_gradients_are_those_of_torch(trained, large, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_WEIGHT", 0 if large else LARGEST_WEIGHT)
    parts = dict(zip("xwb", tensors()))
    for name in trained:
        parts[name].requires_grad_()
    gradient = torch.randn(3, 50, 80)
    wanted = [parts[name] for name in trained]
    result = torch.autograd.grad(linear(*parts.values()), wanted, gradient)
    expected = torch.autograd.grad(F.linear(*parts.values()), wanted, gradient)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-5)


def test_gradients_without_a_bias_of_transposed_and_expanded_tensors():
    x = torch.randn(48, 100).requires_grad_()
    weight = torch.randn(80, 96).requires_grad_()

    def outcome(function):
        y = function(x.T, weight[:, ::2])
        return torch.autograd.grad(y.sum() + (y[:, :3] ** 2).sum(), (x, weight))

    torch.testing.assert_close(outcome(linear), outcome(F.linear), atol=1e-3, rtol=1e-5)


def test_results_may_be_changed_in_place_and_made_again_in_the_backward_pass():
    x, weight, bias = tensors()
    layer = Linear(48, 80)
    with torch.no_grad():
        layer.weight.copy_(weight)

    def function(x):
        return layer(x).add_(1).relu_()

    x.requires_grad_()
    expected = torch.autograd.grad(function(x).sum(), (x, layer.weight))
    again = checkpoint(function, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.sum(), (x, layer.weight)), expected)


@pytest.mark.parametrize("case", ["few rows", "no rows", "float64", "autocast", "stock"])
def test_torch_s_own_is_taken_where_it_is_right(case, products):
    x, weight, bias = tensors((10,) if case == "few rows" else (0,) if case == "no rows" else (90,))
    if case == "float64":
        x, weight, bias = x.double(), weight.double(), bias.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        expected = F.linear(x, weight, bias)
        if case == "stock":
            with stock_linear():
                result = linear(x, weight, bias)
        else:
            result = linear(x, weight, bias)
    assert torch.equal(result, expected) and result.dtype == expected.dtype and not products


CHOICE = module.choice.__wrapped__


@pytest.mark.parametrize(
    ("capability", "intel", "expected"),
    [("AVX512", False, True), ("AVX512", True, False), ("AVX2", False, False)],
)
def test_convolutions_are_taken_only_where_mkl_is_held_back(
    capability, intel, expected, monkeypatch
):
    monkeypatch.delenv(module.VARIABLE, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(module, "_is_intel", lambda: intel)
    assert CHOICE().convolution == expected and CHOICE().reason


def test_the_variable_decides_and_is_checked(monkeypatch):
    for asked, expected in (("convolution", True), ("torch", False)):
        monkeypatch.setenv(module.VARIABLE, asked)
        assert CHOICE() == (expected, f"${module.VARIABLE} is {asked}")
    monkeypatch.setenv(module.VARIABLE, "fast")
    with pytest.raises(InputError, match="CLIPSELF_SEG_LINEAR is .fast.: it is one of auto, torch"):
        CHOICE()
