"""The call of a transformer block, which may be compiled.

It keeps for the backward pass its input and what takes longest for its size, the results of its matrix products, or
everything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Block = Callable[..., Tensor]
"""A transformer block without randomness, or a method of one."""
Keep = Callable[..., CheckpointPolicy]
"""Says of an operator whether its result is kept for the backward pass."""

# Of a block: with and without gradients, masks, one class or several; torch expects 8.
INPUT_KINDS = 32
FEWEST_ELEMENTS = 2**20  # of a block's input; with fewer the bookkeeping takes longer than it saves
# One operator for each of torch's implementations; one of another name is computed twice, and no result changes.
ATTENTION_PREFIX = "_scaled_dot_product_"
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "convolution"}


def compiled(block: Block) -> Block:
    """A transformer block, or a method of one, compiled when it is first called with inputs of a kind."""
    method = block.forward if isinstance(block, nn.Module) else block
    assert isinstance(method, MethodType)
    return functools.partial(_compiled_function(method.__func__), method.__self__)


@functools.cache
def _compiled_function(function: Block) -> Block:
    # A graph that breaks is a mistake of this project, and not computed in pieces.
    return torch.compile(function, fullgraph=True)


def run_block(
    block: Block, tokens_BLD: Tensor, *others: object, checkpointing: bool, compiling: bool = False
) -> Tensor:
    """Gives ``block(tokens_BLD, *others)``, and keeps for the backward pass what `checkpointing` says.

    Args:
        block: computes.
        tokens_BLD: its input.
        others: further arguments.
        checkpointing: True if of the results only those are kept that take long for their size; else those of matrix
            products and attention are.
        compiling: True if the block is compiled; the compiler then decides what else is kept.
    """
    if compiling:
        block = compiled(block)
    if not torch.is_grad_enabled():
        return block(tokens_BLD, *others)
    if checkpointing:
        return recomputed(block, tokens_BLD, *others, keep=None if compiling else keep_expensive)
    # First whether it is traced: a graph, such as an exported one, must not depend on the number of tokens.
    if compiling or torch.compiler.is_compiling() or tokens_BLD.numel() < FEWEST_ELEMENTS:
        return block(tokens_BLD, *others)
    return recomputed(block, tokens_BLD, *others, keep=_keep_products)


def _keep_products(
    _: object, operator: torch._ops.OpOverload, *args: object, **kwargs: object
) -> CheckpointPolicy:
    name = operator.overloadpacket.__name__
    if name in PRODUCTS or name.startswith(ATTENTION_PREFIX):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def keep_expensive(
    _: object, operator: torch._ops.OpOverload, *args: Any, **kwargs: object
) -> CheckpointPolicy:
    """Keeps what takes long for its size: attention, and products with more input channels I than output channels O.

    Nothing may change these results in place.
    """
    name = operator.overloadpacket.__name__
    if name in ("convolution", "linear"):  # weight (O, I, ...)
        expensive = args[1].numel() > len(args[1]) ** 2
    elif name in ("mm", "addmm"):  # matrix (I, O)
        expensive = len(args[-1]) > args[-1].shape[1]
    else:
        expensive = name.startswith(ATTENTION_PREFIX)
    return CheckpointPolicy.MUST_SAVE if expensive else CheckpointPolicy.PREFER_RECOMPUTE


def recomputed(block: Block, *inputs: object, keep: Keep | None = keep_expensive) -> Tensor:
    """Gives ``block(*inputs)``, of which one backward pass computes again what was not kept.

    Args:
        block: computes, without random numbers.
        inputs: its arguments.
        keep: says of every operator whether its result is kept; None keeps the inputs alone.
    """
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if keep is not None and not torch.compiler.is_compiling():
        how["context_fn"] = functools.partial(create_selective_checkpoint_contexts, keep)
        # As in the backward pass: weights that an earlier call has cast would be cast there alone, where torch refuses
        # an operator that it has not seen.
        torch.clear_autocast_cache()
    return checkpoint(block, *inputs, **how)
