"""Identifies weights: by a hash of their bits, and by a cheap state that shows whether they changed in memory."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from clipself_seg.private_torch import COUNTS_WRITES, StorageWeakRef


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """12 hexadecimal digits of names, types, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=6)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


class WeightsState:
    """One state of a module's weights, equal to nothing but itself."""

    def __init__(self) -> None:
        self.hash: str | None = None


class _Known(NamedTuple):
    """The weights of a module and their state.

    Attributes:
        weights: kept, so that no other tensor takes their identity; what they point to may be replaced and freed. (A
            weak reference would do, but torch.utils.swap_tensors refuses tensors that have one.)
        storages: as long as one has not expired, no other memory takes its address.
        fingerprints: identity, version, memory and layout of each.
        state: theirs.
    """

    weights: list[Tensor]
    storages: list[StorageWeakRef]
    fingerprints: Sequence[tuple[object, ...]]
    state: WeightsState


_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def weights_state(module: nn.Module) -> WeightsState:
    """The state of a module's weights: the same object until one of them is written to or replaced.

    It depends on every parameter and buffer, on their memory and on their version counters, which
    every operation of torch raises. The fused kernels of optimisers do not, so a hook on the steps of
    all optimisers makes up for them. Any other write that is not counted needs `invalidate`. Weights
    that were made in inference mode have no versions: every call gives them a new state.
    """
    weights = [
        tensor
        for part in module.modules()
        for tensor in (*part._parameters.values(), *part._buffers.values())
        if tensor is not None
    ]
    if not COUNTS_WRITES or any(tensor.is_inference() for tensor in weights):
        return WeightsState()
    prints: list[tuple[object, ...]] = [
        (id(t), t._version, t.data_ptr(), t.shape, t.stride()) for t in weights
    ]
    known = _KNOWN.get(module)
    if (
        known is None
        or known.fingerprints != prints
        or any(storage.expired() for storage in known.storages)
    ):
        storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in weights]
        known = _KNOWN[module] = _Known(weights, storages, prints, WeightsState())
    return known.state


def weights_hash(module: nn.Module) -> str:
    """`hash_tensors` of a module's state dict, computed once for each state."""
    state = weights_state(module)
    if state.hash is None:
        state.hash = hash_tensors(module.state_dict())
    return state.hash


def invalidate(module: nn.Module) -> None:
    """Forgets the state of a module's weights, after a write that torch does not count.

    Such are writes through ``.data`` or a NumPy view, those of collective operations, of kernels of
    one's own and of replayed CUDA graphs.
    """
    _KNOWN.pop(module, None)


def _forget_what_was_optimised(optimizer: torch.optim.Optimizer, *_: object) -> None:
    written = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for module, known in list(_KNOWN.items()):
        if not written.isdisjoint(map(id, known.weights)):
            invalidate(module)


register_optimizer_step_post_hook(_forget_what_was_optimised)
