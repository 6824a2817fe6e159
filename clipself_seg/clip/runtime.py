"""The run of tensors through layers: chunks, precision, copies to a device, compiled blocks, memory for gradients.

In this order: sizes of chunks (`chunk_size`), precision (`full_precision`, `tf32`, `in_own_precision`, `autocast`),
tensors that are copied or made without waiting (`on_device`, `send`, `constant`) or without values (`without_values`),
and the call of a transformer block (`run_block`), which may be compiled, and keeps for the backward pass its input, the
results of its matrix products, or everything.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MethodType

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Nested = float | Sequence["Nested"]
Block = Callable[..., Tensor]
"""A transformer block without randomness, or a method of one."""

QUEUES = not torch.backends.mps.is_available()
"""Whether a copy to a device may wait in its queue; mps may read the memory when it has other numbers already."""

CHUNK_ELEMENTS = 2**28  # that a chunk makes on a GPU, 1 GiB in float32
# Of a block: with and without gradients, masks, one class or several; torch expects 8.
INPUT_KINDS = 32
FEWEST_ELEMENTS = 2**20  # of a block's input; with fewer the bookkeeping takes longer than it saves
ATTENTION_PREFIX = "_scaled_dot_product_"  # one operator for each of torch's implementations
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "convolution"}


def widest(device: torch.device) -> torch.dtype:
    """Type of the most exact numbers of a device: float64, but for mps, which has none wider than float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def on_cpu(tensor: Tensor) -> bool:
    """True if a CPU computes with the tensor, where values may decide what is worth computing.

    It is False while a graph is traced, whose sizes must not depend on values.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def chunk_size(device: torch.device, in_cache: int, elements_per_item: int) -> int:
    """Number of equal items that are processed together, at least 1.

    A CPU gains from small chunks, whose elements it need not fetch from memory again. A GPU does not: it waits for
    Python between small operations, and gets as many items as memory allows. Nothing but the device decides.

    Args:
        device: that computes.
        in_cache: items whose elements stay in a CPU's cache.
        elements_per_item: elements that are in memory for one item, all that is made of it included.
    """
    if device.type == "cpu":
        return max(1, in_cache)
    return max(1, CHUNK_ELEMENTS // max(1, elements_per_item))


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Turns autocast off inside the context, on any device.

    On devices without autocast, such as "meta" (where operations are counted), it does nothing.
    """
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _tf32() -> tuple[str, bool | str]:
    """Name and value of torch's setting; it refuses the older name, which compilers read, once the newer is used."""
    try:
        return "allow_tf32", torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:
        return "fp32_precision", torch.backends.cuda.matmul.fp32_precision


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allows a GPU to round the factors of matrix products to TF32, or forbids it; no effect on the CPU."""
    name, before = _tf32()
    wanted = allowed if name == "allow_tf32" else "tf32" if allowed else "ieee"
    setattr(torch.backends.cuda.matmul, name, wanted)
    try:
        yield
    finally:
        setattr(torch.backends.cuda.matmul, name, before)


def lower_precision(device: torch.device) -> tuple[torch.dtype | None, bool | str]:
    """The present precision of products: autocast's type, None where it is off, and torch's TF32 setting."""
    kind = device.type
    rounded = kind == "cuda" and _tf32()[1]
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None, rounded
    return torch.get_autocast_dtype(kind), rounded


def in_own_precision(layer: nn.Module, x: Tensor) -> Tensor:
    """Output of a layer in the precision of its weights, autocast or not; with gradients in the run's precision.

    It is for values for which the 8 bits of bfloat16 are too coarse in evaluation: the sum of all blocks, scores, whose
    differences decide, and coordinates.
    """
    if torch.is_grad_enabled():
        return layer(x)
    with full_precision(x.device):
        return layer(x.to(next(layer.parameters()).dtype))


def autocast(
    device: torch.device, precision: torch.dtype | None
) -> contextlib.AbstractContextManager[object]:
    """Turns mixed precision on inside the context.

    Args:
        device: device of the computation.
        precision: lower precision, torch.float16 or torch.bfloat16; None computes in the precision of
            the weights.
    """
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)


def on_device(
    samples: Sequence[Mapping[str, Tensor]], key: str, device: torch.device
) -> list[Tensor]:
    """The tensors under `key` of all samples, on a device, without waiting for the copies.

    Each is copied by itself: memory of a loader is pinned for a GPU (`data.loader.batches_of`), and what is stacked of
    it on the CPU would not be.
    """
    return [sample[key].to(device, non_blocking=QUEUES) for sample in samples]


def send(made: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor that was just made on the CPU to a device, without waiting for a GPU: from pinned memory."""
    if device.type == "cuda":
        made = made.pin_memory()
    return made.to(device, non_blocking=QUEUES)


def constant(values: Nested, like: Tensor) -> Tensor:
    """A tensor of the type and on the device of another, equal to ``like.new_tensor(values)``.

    `Tensor.new_tensor` waits until all that the GPU was given before is done; here the copy queues behind it.

    Args:
        values: numbers, nested as they shall lie; a few, for memory that is not pinned is copied twice.
        like: has the type and the device.
    """
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=QUEUES)


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
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def allow_kinds_of_inputs() -> None:
    """Lets torch compile a block for as many kinds of inputs as there are."""
    limit = torch._dynamo.config.cache_size_limit
    torch._dynamo.config.cache_size_limit = max(INPUT_KINDS, limit)


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
