"""Products that use the widest vector instructions of a CPU: linear layers, and attention over many tokens.

torch computes float32 matrix products with MKL, which is limited to AVX2 on processors that are not
Intel's, and convolutions with oneDNN, which uses AVX-512 wherever it exists. A linear layer is a 1 x 1
convolution of an image of one column, without a change of layout: the same sums, up to twice as fast
where MKL is held back. With one thread torch gives a 1 x 1 convolution to MKL all the same, but not a dilated one:
a dilation along the one column changes nothing else, and the bits are those of several threads. Other processors use
torch's own product: there is no gain, and without AVX-512 some numbers of rows take three times as long. What decides
is the processor, not a stopwatch: the same machine always gives the same bits.

torch's kernel of attention asks oneDNN for its products where float32 may be computed in bfloat16. A processor with
AVX-512 and without AMX has no faster way in bfloat16, and oneDNN computes them in float32 (`products_by_onednn`).

Shapes: R rows, I input and O output channels.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.precision import SharedSetting
from clipself_seg.errors import known
from clipself_seg.private_torch import CONVOLUTION_BACKWARD, functorch_may_be_active, own_tensor
from clipself_seg.provenance import cpu_info

VARIABLE = "CLIPSELF_SEG_LINEAR"
CHOICES = ("auto", "torch", "convolution")
# With fewer, converting the weight to oneDNN's layout costs more than it saves. With one thread the limit is higher.
FEWEST_ROWS, FEWEST_ROWS_ALONE = 64, 256
FEWEST_NUMBERS = 20480  # of the rows; up to these torch gives no convolution to oneDNN
# Number of weights up to which oneDNN computes their gradient as fast as MKL.
LARGEST_WEIGHT = 2**18
FULL_WIDTH = 26  # family of AMD's processors (Zen 5) from which 512 bits are one step, and no weight is too large
ROWS_TOGETHER = 16  # of a weight's gradient: oneDNN takes twice as long for numbers of rows that 4 does not divide
DILATION = (1, 2)
# Arguments of a convolution without stride, padding and the like.
PLAIN: dict[str, Any] = {
    "stride": [1, 1],
    "padding": [0, 0],
    "dilation": [*DILATION],
    "transposed": False,
    "output_padding": [0, 0],
    "groups": 1,
}
LARGEST_ERROR = 2e-6  # of attention by oneDNN, relative: float32 has 5e-7, bfloat16 2e-3

stock: ContextVar[bool] = ContextVar("stock", default=False)  # True inside of `stock_linear`


@functools.cache
def by_convolution() -> bool:
    """True if convolutions suit this machine, or `$CLIPSELF_SEG_LINEAR` asks for them: "auto", "torch", "convolution".

    Raises:
        InputError: the variable has another value.
    """
    asked = known(os.environ.get(VARIABLE) or "auto", CHOICES, f"${VARIABLE}")
    if asked != "auto":
        return asked == "convolution"
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    # MKL uses AVX-512 on Intel's processors, and does without on others.
    return (
        "AVX512" in torch.backends.cpu.get_cpu_capability() and "GenuineIntel" not in _processor()
    )


@functools.cache
def _processor() -> str:
    """The system's description of its processor, on Linux with family and flags."""
    return platform.processor() + cpu_info()


def amd_family() -> int:
    """Family of AMD's processors that this one is of (Zen 4 is 25, Zen 5 is 26); 0 where the system does not say."""
    match = re.search(r"AuthenticAMD\ncpu family\s*: (\d+)", _processor())
    return int(match[1]) if match else 0


@functools.cache
def largest_weight() -> int:
    """Number of weights up to which oneDNN computes their gradient on this machine."""
    return 2**62 if amd_family() >= FULL_WIDTH else LARGEST_WEIGHT


@contextlib.contextmanager
def stock_linear() -> Iterator[None]:
    """Makes `linear` torch's own inside the context, for benchmarks of the plain formulations."""
    token = stock.set(True)
    try:
        yield
    finally:
        stock.reset(token)


class Linear(nn.Linear):
    """`nn.Linear` that calls `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Transforms (..., I) into (..., O)."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The result (..., O) of `F.linear` of `x` (..., I), weight (O, I) and bias (O,).

    Where that is possible and faster oneDNN makes it as a convolution of an image of R x 1 pixels, channels last.
    """
    if (
        torch.compiler.is_compiling()  # first: compilers have products of their own
        # Neither torch.func nor a tracer, such as fvcore's that counts operations, looks into `_Product`.
        or functorch_may_be_active()
        or torch.jit.is_tracing()
        or stock.get()  # before the rows: an exported graph must not depend on their number
        or x.device.type != "cpu"
        or not x.dtype == weight.dtype == torch.float32
        or x.numel() <= FEWEST_NUMBERS
        or x.numel()
        < x.shape[-1] * (FEWEST_ROWS if torch.get_num_threads() > 1 else FEWEST_ROWS_ALONE)
        or not by_convolution()
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(x, weight, bias)
    rows_RI = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        rows_RO = _Product.apply(rows_RI, weight, bias)
    else:
        image_1IR1 = rows_RI[None, :, None].permute(0, 3, 1, 2)
        image_1OR1 = F.conv2d(image_1IR1, weight[:, :, None, None], bias, dilation=DILATION)
        rows_RO = image_1OR1[0, :, :, 0].T.contiguous()
    return rows_RO.view(*x.shape[:-1], -1)


@contextlib.contextmanager
def products_by_onednn() -> Iterator[None]:
    """Lets oneDNN compute torch's float32 products inside the context, where `onednn_is_exact`; else does nothing.

    torch has one setting for all threads. Products that another thread computes meanwhile are oneDNN's too: in float32,
    with other last digits. The setting comes back when the last thread has left.
    """
    if stock.get() or not onednn_is_exact():
        yield
        return
    with _PRODUCTS.set_to("fp32_precision", "bf16"):
        yield


# torch's setting for float32 products on a CPU, which torch's types do not know.
_PRODUCTS = SharedSetting(torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


@functools.cache
def onednn_is_exact() -> bool:
    """True if this machine gains by `products_by_onednn`, and its attention is then exact to `LARGEST_ERROR`.

    It is False with AMX, which would compute in bfloat16.
    """
    if not by_convolution() or "amx_bf16" in _processor():
        return False
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        q, k, v = torch.randn(3, 1, 1, 512, 64, generator=torch.Generator().manual_seed(0))
        exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
        with _PRODUCTS.set_to("fp32_precision", "bf16"):
            error = F.scaled_dot_product_attention(q, k, v) - exact
        return bool(error.norm() <= LARGEST_ERROR * exact.norm())


class _Product(torch.autograd.Function):
    """The convolution, with MKL for the gradient of large weights."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        product = linear(rows, weight, bias)  # without gradients here: the convolution
        return own_tensor(product)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()
        return (
            _backward(gradient, rows, weight, 0) if wants_rows else None,
            _of_weight(gradient, rows, weight) if wants_weight else None,
            gradient.sum(dim=0) if wants_bias else None,
        )


def _of_weight(gradient: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Gradient (O, I) of the weight."""
    if weight.numel() > largest_weight():
        return gradient.T @ rows
    whole = len(rows) // ROWS_TOGETHER * ROWS_TOGETHER
    result = _backward(gradient[:whole], rows[:whole], weight, 1)
    # Not in place: torch's counter of operations does not know "addmm_".
    return torch.addmm(result, gradient[whole:].T, rows[whole:])


def _backward(gradient: Tensor, rows: Tensor, weight: Tensor, number: int) -> Tensor:
    """Gradient of the rows (number 0) or of the weight (number 1), as a matrix."""
    if CONVOLUTION_BACKWARD is None:
        return gradient.T @ rows if number else gradient @ weight
    wanted = [number == 0, number == 1, False]
    image = CONVOLUTION_BACKWARD(
        gradient[None, :, None].permute(0, 3, 1, 2),
        rows[None, :, None].permute(0, 3, 1, 2),
        weight[:, :, None, None],
        None,
        **PLAIN,
        output_mask=wanted,
    )[number]
    return image[:, :, 0, 0] if number else image[0, :, :, 0].T
