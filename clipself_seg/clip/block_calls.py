"""The call of a transformer block, which may be compiled.

It keeps for the backward pass its input, the results of its matrix products, or everything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Block = Callable[..., Tensor]
"""A transformer block without randomness, or a method of one."""

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
        checkpointing: True if only the input is kept; else the results of matrix products and attention are, too.
        compiling: True if the block is compiled; the compiler then decides what else is kept.
    """
    if compiling:
        block = compiled(block)
    if not torch.is_grad_enabled():
        return block(tokens_BLD, *others)
    recompute = functools.partial(
        checkpoint, block, tokens_BLD, *others, use_reentrant=False, preserve_rng_state=False
    )
    if checkpointing:
        return recompute()
    # First whether it is traced: a graph, such as an exported one, must not depend on the number of tokens.
    traced = compiling or torch.compiler.is_compiling()
    if traced or tokens_BLD.numel() < FEWEST_ELEMENTS:
        return block(tokens_BLD, *others)
    return recompute(
        context_fn=functools.partial(create_selective_checkpoint_contexts, _keep_products)
    )


def _keep_products(
    _: object, operator: torch._ops.OpOverload, *args: object, **kwargs: object
) -> CheckpointPolicy:
    name = operator.overloadpacket.__name__
    if name in PRODUCTS or name.startswith(ATTENTION_PREFIX):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
