"""Linear layers that use the widest vector instructions of a CPU.

torch computes float32 matrix products with MKL, which is limited to AVX2 on processors that are not
Intel's, and convolutions with oneDNN, which uses AVX-512 wherever it exists. A linear layer is a 1 x 1
convolution of an image of one column, without a change of layout: the same sums, up to twice as fast
where MKL is held back. Elsewhere nothing is gained, and on processors without AVX-512 some numbers of rows take
three times as long, so that torch's own is taken there. What decides is the processor, not a stopwatch: the same
machine always gives the same bits.

Shapes: R rows, I input and O output channels.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.errors import InputError, shown

VARIABLE = "CLIPSELF_SEG_LINEAR"
CHOICES = ("auto", "torch", "convolution")
FEWEST_ROWS = 64  # with fewer, converting the weight to oneDNN's layout costs more than it saves
LARGEST_WEIGHT = (
    2**18
)  # number of weights up to which oneDNN computes their gradient faster than MKL
# Arguments of a convolution without stride, padding and the like.
PLAIN: dict[str, Any] = {
    "stride": [1, 1],
    "padding": [0, 0],
    "dilation": [1, 1],
    "transposed": False,
    "output_padding": [0, 0],
    "groups": 1,
}

_stock: ContextVar[bool] = ContextVar("stock", default=False)


class Choice(NamedTuple):
    """How linear layers are computed on a CPU.

    Attributes:
        convolution: whether as convolutions.
        reason: why.
    """

    convolution: bool
    reason: str


@functools.cache
def choice() -> Choice:
    """What this machine takes, or `$CLIPSELF_SEG_LINEAR`: "auto", "torch" or "convolution".

    Raises:
        InputError: the variable has another value.
    """
    asked = os.environ.get(VARIABLE) or "auto"
    if asked not in CHOICES:
        raise InputError(f"${VARIABLE} is {shown(asked)}: it is one of {', '.join(CHOICES)}")
    if asked != "auto":
        return Choice(asked == "convolution", f"${VARIABLE} is {asked}")
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return Choice(False, "this torch has no MKL beside oneDNN")
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return Choice(False, "this processor has no AVX-512")
    if _is_intel():
        return Choice(False, "MKL uses AVX-512 on Intel's processors")
    return Choice(True, "MKL does without AVX-512 on processors that are not Intel's")


def _is_intel() -> bool:
    known = platform.processor()
    with contextlib.suppress(OSError):
        known += Path("/proc/cpuinfo").read_text(errors="replace")
    return "GenuineIntel" in known


@contextlib.contextmanager
def stock_linear() -> Iterator[None]:
    """Makes `linear` torch's own inside the context, for benchmarks of the plain formulations."""
    token = _stock.set(True)
    try:
        yield
    finally:
        _stock.reset(token)


def is_stock() -> bool:
    """Whether `stock_linear` holds."""
    return _stock.get()


class Linear(nn.Linear):
    """`nn.Linear` that calls `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Transforms (..., I) into (..., O)."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The result (..., O) of `F.linear` of `x` (..., I), weight (O, I) and bias (O,)."""
    if not _pays(x, weight):
        return F.linear(x, weight, bias)
    rows_RI = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        rows_RO = _Product.apply(rows_RI, weight, bias)
    else:
        rows_RO = _product(rows_RI, weight, bias)
    return rows_RO.view(*x.shape[:-1], -1)


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether the convolution is possible and faster."""
    return (
        not torch.compiler.is_compiling()  # first: compilers have products of their own
        and not is_stock()  # before the rows: an exported graph must not depend on their number
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and choice().convolution
        and not torch.is_autocast_enabled("cpu")
    )


def _as_image(rows: Tensor) -> Tensor:
    """View (1, C, R, 1) with channels last of rows (R, C)."""
    return rows[None, :, None].permute(0, 3, 1, 2)


def _as_rows(image: Tensor) -> Tensor:
    """View (R, C) of an image (1, C, R, 1)."""
    return image[0, :, :, 0].T


def _product(rows_RI: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _as_rows(F.conv2d(_as_image(rows_RI), weight[:, :, None, None], bias)).contiguous()


class _Product(torch.autograd.Function):
    """The convolution, with MKL for the gradient of large weights."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        product = _product(rows, weight, bias)
        # Autograd must not take the result for a view, which callers could not change in place.
        return torch.ops.aten._unsafe_view(product, product.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()
        by_mkl = wants_weight and weight.numel() > LARGEST_WEIGHT
        of_rows, of_weight, _ = torch.ops.aten.convolution_backward(
            _as_image(gradient),
            _as_image(rows),
            weight[:, :, None, None],
            None,
            **PLAIN,
            output_mask=[wants_rows, wants_weight and not by_mkl, False],
        )
        return (
            _as_rows(of_rows) if wants_rows else None,
            gradient.T @ rows if by_mkl else of_weight[:, :, 0, 0] if wants_weight else None,
            gradient.sum(dim=0) if wants_bias else None,
        )
