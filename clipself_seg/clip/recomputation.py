"""Activation checkpointing of transformer blocks: keep everything, matrix products and attention, or the input alone.

Most of what autograd keeps of a block is cheap to compute again: norms, activations, gates, rotations.
Between keeping all of it and computing whole blocks twice (`checkpointing`, a third more time) lies what is
done here by default: results of matrix products and attention are kept, the rest is computed again from them
(selective activation checkpointing, Korthikanti et al., "Reducing Activation Recomputation in Large
Transformer Models", arXiv 2205.05198). Gradients are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from clipself_seg.clip.compilation import compiled

FEWEST_NUMBERS = 2**20  # of a block's input; with fewer the bookkeeping takes longer than it saves
_ATTENTION = "_scaled_dot_product_"  # one operator for each of torch's implementations
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "convolution"}


def run_block(
    block: Callable[..., Tensor],
    tokens_BLD: Tensor,
    *others: Any,
    checkpointing: bool,
    compiling: bool = False,
) -> Tensor:
    """Gives ``block(tokens_BLD, *others)``, and keeps for the backward pass what `checkpointing` says.

    Args:
        block: a transformer block without randomness, or a method of one.
        tokens_BLD: its input.
        others: further arguments.
        checkpointing: whether only the input is kept; otherwise the results of matrix products and attention too.
        compiling: whether the block is compiled, see `compilation.py`; the compiler decides then what is kept besides.
    """
    if compiling:
        block = compiled(block)
    if not torch.is_grad_enabled():
        return block(tokens_BLD, *others)
    kept: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if checkpointing:
        return checkpoint(block, tokens_BLD, *others, **kept)
    # First whether it is traced: a graph, such as an exported one, must not depend on the number of tokens.
    traced = compiling or torch.compiler.is_compiling()
    if traced or tokens_BLD.numel() < FEWEST_NUMBERS:
        return block(tokens_BLD, *others)
    selected = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, tokens_BLD, *others, **kept, context_fn=selected)


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = operator.overloadpacket.__name__
    if name in _PRODUCTS or name.startswith(_ATTENTION):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
