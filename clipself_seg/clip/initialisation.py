"""Random parameters, and modules that are made without any because their weights are loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


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
