"""Members of torch that it does not promise to keep, each behind one function that does without where it is missing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    from torch.multiprocessing.reductions import StorageWeakRef
except ImportError:
    StorageWeakRef = None  # type: ignore[assignment,misc]

_FUNCTORCH = getattr(torch._C, "_are_functorch_transforms_active", None)
_UNSAFE_VIEW = getattr(torch.ops.aten, "_unsafe_view", None)
_CONVOLUTION_BACKWARD = getattr(torch.ops.aten, "convolution_backward", None)
# Number of graphs that a function may be compiled to, by its newer and its older name.
_LIMITS = ("recompile_limit", "cache_size_limit")


def functorch_may_be_active() -> bool:
    """True within a transform of torch.func, and always where that cannot be asked."""
    return _FUNCTORCH is None or _FUNCTORCH()


def own_tensor(result: Tensor) -> Tensor:
    """A tensor of the same values that autograd takes for no view, so that callers may change it in place."""
    return result.clone() if _UNSAFE_VIEW is None else _UNSAFE_VIEW(result, result.shape)


def convolution_backward(*tensors: Tensor, number: int, **how: Any) -> Tensor | None:
    """The gradient of one of a convolution's inputs; None where torch has no such function.

    Args:
        *tensors: gradient of the output, image, weight.
        number: 0 for the gradient of the image, 1 for that of the weight.
        **how: further arguments of the convolution.
    """
    if _CONVOLUTION_BACKWARD is None:
        return None
    wanted = [number == 0, number == 1, False]
    gradients = _CONVOLUTION_BACKWARD(*tensors, None, **how, output_mask=wanted)
    return gradients[number]  # type: ignore[no-any-return]


class _Kept:
    """A storage that is kept, where none can be watched without keeping it."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = storage

    def expired(self) -> bool:
        """False: it is kept."""
        return False


def watched(storage: torch.UntypedStorage) -> Any:
    """An object whose `expired()` says if a storage is freed, so that other memory may have its address."""
    return _Kept(storage) if StorageWeakRef is None else StorageWeakRef(storage)


def version(tensor: Tensor) -> int | None:
    """Number of writes to a tensor; None of one that counts none, and where torch does not say."""
    return None if tensor.is_inference() else getattr(tensor, "_version", None)


def allow_graphs(count: int) -> None:
    """Lets torch compile a function to so many graphs, for as many kinds of inputs; without the setting to fewer."""
    config = torch._dynamo.config
    for name in _LIMITS:
        if hasattr(config, name):
            setattr(config, name, max(count, getattr(config, name)))
            return
