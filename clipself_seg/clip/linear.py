"""The linear layer as a convolution, where a processor gains by it (`CONVOLUTION`).

torch computes float32 matrix products with MKL, which is limited to AVX2 on processors that are not Intel's, and
convolutions with oneDNN, which uses AVX-512 wherever it exists. A linear layer is a 1 x 1 convolution of an image of
one column, without a change of layout: the same sums, up to twice as fast where MKL is held back. With one thread torch
gives a 1 x 1 convolution to MKL all the same, but not a dilated one: a dilation along the one column changes nothing
else, and the bits are those of several threads.

Shapes: R rows, I input and O output channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.levers import Lever, amd_family, processor, stock
from clipself_seg.private_torch import functorch_may_be_active, own_tensor

# With fewer, converting the weight to oneDNN's layout costs more than it saves. With one thread the limit is higher.
FEWEST_ROWS, FEWEST_ROWS_ALONE = 64, 256
FEWEST_NUMBERS = 20480  # of the rows; up to these torch gives no convolution to oneDNN
# Number of weights up to which oneDNN computes their gradient as fast as MKL.
LARGEST_WEIGHT = 2**18
FULL_WIDTH = 26  # family of AMD's processors (Zen 5) from which 512 bits are one step, and no weight is too large
ROWS_TOGETHER = 16  # of a weight's gradient: oneDNN takes twice as long for numbers of rows that 4 does not divide
DILATION = (1, 2)


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
        or not CONVOLUTION.chosen
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(x, weight, bias)
    rows_RI = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        rows_RO = _Product.apply(rows_RI, weight, bias)
    else:
        rows_RO = _convolved(rows_RI, weight, bias)
    return rows_RO.view(*x.shape[:-1], -1)


def _convolved(rows_RI: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    image_1IR1 = rows_RI[None, :, None].permute(0, 3, 1, 2)
    image_1OR1 = F.conv2d(image_1IR1, weight[:, :, None, None], bias, dilation=DILATION)
    return image_1OR1[0, :, :, 0].T.contiguous()


class _Product(torch.autograd.Function):
    """The convolution, with MKL for the gradient of large weights."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return own_tensor(_convolved(rows, weight, bias))

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
    if weight.numel() > LARGEST_WEIGHT and amd_family() < FULL_WIDTH:
        return gradient.T @ rows
    whole = len(rows) // ROWS_TOGETHER * ROWS_TOGETHER
    result = _backward(gradient[:whole], rows[:whole], weight, 1)
    # Not in place: torch's counter of operations does not know "addmm_".
    return torch.addmm(result, gradient[whole:].T, rows[whole:])


def _backward(gradient: Tensor, rows: Tensor, weight: Tensor, number: int) -> Tensor:
    """Gradient of the rows (number 0) or of the weight (number 1), as a matrix."""
    # Stride, padding, dilation, no transposition, output padding and groups.
    plain = ([1, 1], [0, 0], [*DILATION], False, [0, 0], 1)
    image = torch.ops.aten.convolution_backward(
        gradient[None, :, None].permute(0, 3, 1, 2),
        rows[None, :, None].permute(0, 3, 1, 2),
        weight[:, :, None, None],
        None,
        *plain,
        [number == 0, number == 1, False],
    )[number]
    return image[:, :, 0, 0] if number else image[0, :, :, 0].T


def _suits() -> bool:
    """True on a processor where MKL is held back."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    return "AVX512" in torch.backends.cpu.get_cpu_capability() and "AuthenticAMD" in processor()


def _results() -> tuple[Tensor, Tensor]:
    """A product and its gradients of rows and weight, computed here and in float64."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(1088, 64, generator=draw, dtype=torch.float32)
    x, weight, gradient = rows.split((512, 64, 512))
    ours = [
        own_tensor(_convolved(x, weight, None)),
        *(_backward(gradient, x, weight, n) for n in (0, 1)),
    ]
    x, weight, gradient = x.double(), weight.double(), gradient.double()
    return torch.cat(ours), torch.cat([x @ weight.T, gradient @ weight, gradient.T @ x])


CONVOLUTION = Lever(_suits, _results)
