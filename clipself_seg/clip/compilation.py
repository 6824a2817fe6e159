"""Compiles transformer blocks with `torch.compile`, which fuses elementwise operations between matrix products.

A block is compiled, not a tower: all blocks are one piece of code, which is compiled once for all of them, in a
fraction of the time. Names of weights, copies and files of a model stay what they are, since nothing is wrapped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clipself_seg.errors import InputError

KINDS = 32  # of inputs of a block: with and without gradients, masks, one class or several; torch expects 8


def require_compiler() -> None:
    """Refuse a torch that would compile every block anew, and let one compile as many kinds of inputs as there are.

    Raises:
        InputError: torch is older than 2.5.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 5):
        raise InputError(
            f"MODEL.CLIP.COMPILE needs torch 2.5 or later, here is {torch.__version__}: leave it False"
        )
    torch._dynamo.config.cache_size_limit = max(KINDS, torch._dynamo.config.cache_size_limit)


def compiled(block: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A transformer block, or a method of one, compiled when it is first called with inputs of a kind."""
    method: Any = block.forward if isinstance(block, nn.Module) else block
    return functools.partial(_compiled_function(method.__func__), method.__self__)


@functools.cache
def _compiled_function(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # A graph that breaks is a mistake of this project, and not computed in pieces.
    return torch.compile(function, fullgraph=True)
