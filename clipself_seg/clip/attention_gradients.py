"""Attention over many tokens with gradients, on a CPU whose oneDNN has wider instructions than MKL.

torch's kernel and its gradient, each with heads in memory of their own and with oneDNN's products
(`linear.products_by_onednn`). The sums are the same, their last digits are not.

Shapes: B batch, H heads, Q queries, L keys, C channels of one head.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.linear import LARGEST_ERROR, onednn_is_exact, products_by_onednn, stock
from clipself_seg.private_torch import ATTENTION, ATTENTION_BACKWARD, functorch_may_be_active

FEWEST = 2048  # queries and keys for which the copies cost less than they save


def takes(q_BHQC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor) -> bool:
    """True if `attend` is meant for these queries, keys and values of an attention without mask.

    Args:
        q_BHQC: queries.
        k_BHLC: keys.
        v_BHLC: values.
    """
    return not (
        torch.compiler.is_compiling()  # first, as in `linear`
        or functorch_may_be_active()
        or torch.jit.is_tracing()
        or stock.get()
        or q_BHQC.device.type != "cpu"
        or not q_BHQC.dtype == k_BHLC.dtype == v_BHLC.dtype == torch.float32
        or min(q_BHQC.shape[2], k_BHLC.shape[2]) < FEWEST
        or torch.is_autocast_enabled("cpu")
        or not gradients_are_exact()
    )


def attend(q_BHQC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor) -> Tensor:
    """Softmax attention without mask, (B, H, Q, C).

    Args:
        q_BHQC: queries.
        k_BHLC: keys.
        v_BHLC: values.
    """
    return _Attention.apply(*(x.contiguous() for x in (q_BHQC, k_BHLC, v_BHLC)))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with products_by_onednn():
            attended, log_sums = ATTENTION(q, k, v)
        ctx.save_for_backward(q, k, v, attended, log_sums)
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with products_by_onednn():
            return ATTENTION_BACKWARD(gradient.contiguous(), *ctx.saved_tensors, 0.0, False)


@functools.cache
def gradients_are_exact() -> bool:
    """True if this machine gains by `products_by_onednn`, and gradients by it are exact to `LARGEST_ERROR`."""
    if ATTENTION_BACKWARD is None or not onednn_is_exact():
        return False
    generator = torch.Generator().manual_seed(0)
    *inputs, gradient = torch.randn(4, 1, 1, 1024, 64, generator=generator)
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        leaves = [x.requires_grad_() for x in inputs]
        found = torch.autograd.grad(attend(*leaves), leaves, gradient)
        leaves = [x.detach().double().requires_grad_() for x in inputs]
        attended = F.scaled_dot_product_attention(*leaves)
        exact = torch.autograd.grad(attended, leaves, gradient.double())
    return all((a - b).norm() <= LARGEST_ERROR * b.norm() for a, b in zip(found, exact))
