"""Linear layers that run at the CPU's full width.

torch gives float32 matrix products to MKL, which keeps to AVX2 on processors that are not Intel's,
and convolutions to oneDNN, which uses AVX-512 wherever it exists. A linear layer is a convolution
of 1 x 1 over a picture of one column, and no layout changes on the way: the same sum, up to twice as
fast, and as fast as MKL where MKL is at its best.

Shapes: R rows, I input and O output channels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_ROWS = 64  # below, the weight's way to oneDNN's layout costs more than it saves
LARGEST_WEIGHT = 2**18  # whose gradient oneDNN finds faster than MKL
# A convolution without stride, padding and the like.
PLAIN: dict[str, Any] = {
    "stride": [1, 1],
    "padding": [0, 0],
    "dilation": [1, 1],
    "transposed": False,
    "output_padding": [0, 0],
    "groups": 1,
}

_stock = False


@contextlib.contextmanager
def stock_linear() -> Iterator[None]:
    """`linear` is torch's own inside: what others' formulations are measured with."""
    global _stock
    before, _stock = _stock, True
    try:
        yield
    finally:
        _stock = before


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) -> (..., O)"""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: (..., I) times (O, I), plus (O,) -> (..., O)."""
    if not _pays(x, weight):
        return F.linear(x, weight, bias)
    rows_RI = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        rows_RO = _Product.apply(rows_RI, weight, bias)
    else:
        rows_RO = _product(rows_RI, weight, bias)
    return rows_RO.view(*x.shape[:-1], -1)


def _pays(x: Tensor, weight: Tensor) -> bool:
    return (
        not _stock
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


def _picture(rows: Tensor) -> Tensor:
    """(R, C) -> (1, C, R, 1) with channels last, a view."""
    return rows[None, :, None].permute(0, 3, 1, 2)


def _rows(picture: Tensor) -> Tensor:
    """(1, C, R, 1) -> (R, C)"""
    return picture[0, :, :, 0].T


def _product(rows_RI: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _rows(F.conv2d(_picture(rows_RI), weight[:, :, None, None], bias)).contiguous()


class _Product(torch.autograd.Function):
    """The convolution, with MKL for the gradient of large weights."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        found = _product(rows, weight, bias)
        # Not a view in autograd's eyes: callers may go on in place.
        return torch.ops.aten._unsafe_view(found, found.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()
        by_mkl = wants_weight and weight.numel() > LARGEST_WEIGHT
        of_rows, of_weight, _ = torch.ops.aten.convolution_backward(
            _picture(gradient),
            _picture(rows),
            weight[:, :, None, None],
            None,
            **PLAIN,
            output_mask=[wants_rows, wants_weight and not by_mkl, False],
        )
        return (
            _rows(of_rows) if wants_rows else None,
            gradient.T @ rows if by_mkl else of_weight[:, :, 0, 0] if wants_weight else None,
            gradient.sum(dim=0) if wants_bias else None,
        )
