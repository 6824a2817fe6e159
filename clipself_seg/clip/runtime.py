"""Chooses sizes of chunks: on a CPU what its cache holds, elsewhere everything at once as far as memory allows.

A CPU gains from small pieces, whose numbers it need not fetch from memory again. A GPU does not: it waits for Python
between small operations. Nothing but the device of the tensors decides.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from clipself_seg.errors import InputError

NUMBERS = 2**28  # numbers that a piece makes on a GPU, 1 GiB in float32


def on_cpu(tensor: Tensor) -> bool:
    """Whether a CPU computes with the tensor, for which values decide what is worth computing."""
    return tensor.device.type == "cpu"


def at_once(device: torch.device, in_cache: int, numbers: int) -> int:
    """How many of equal items are processed together, at least 1.

    Args:
        device: that computes.
        in_cache: items whose numbers stay in a CPU's cache.
        numbers: numbers that are in memory for one item, all that is made of it included.
    """
    return max(1, in_cache if device.type == "cpu" else NUMBERS // max(1, numbers))


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Turns autocast off inside the context, on any device.

    On devices without autocast, such as "meta" (where operations are counted), it does nothing.
    """
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The lower precision that autocast computes in at the moment, None where it is off or does not exist."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def autocast(
    device: torch.device, precision: torch.dtype | None
) -> contextlib.AbstractContextManager:
    """Turns mixed precision on inside the context.

    Args:
        device: device of the computation.
        precision: lower precision, torch.float16 or torch.bfloat16; None computes in the precision of
            the weights.
    """
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)


def constant(values: Any, like: Tensor) -> Tensor:
    """What ``like.new_tensor(values)`` gives, a tensor of the type and on the device of another.

    `Tensor.new_tensor` waits until all that the GPU was given before is done; here the copy queues behind it.

    Args:
        values: numbers, nested as they shall lie; a few, for memory that is not pinned is copied twice.
        like: has the type and the device.
    """
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def normal_parameter(*size: int, std: float) -> nn.Parameter:
    """A parameter of normal numbers with mean 0."""
    return nn.Parameter(nn.init.normal_(torch.empty(size), std=std))


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Makes modules whose tensors have shapes alone, on "meta": no memory is taken and no random number drawn."""
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """Leaves out `normal_`, which on "meta" runs in Python and imports a compiler: a second of every command."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


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
