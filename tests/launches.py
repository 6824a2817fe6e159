"""Counts the kernel launches that code would need on a GPU, without a GPU.

A GPU computes what it is given one launch after another, and small ones take the time that Python needs to ask for
them. Counted are torch's operations on tensors of the device, once everything has been called before: those that read
or write their values, copies to and from it included, and not those that make views or memory. A GPU runs at least one
kernel for each (a few for sorting, some convolutions and norms, and one for many tensors in a fused optimiser).
Attention is one operation; its backward pass is counted by its parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.accelerator import Accelerator, OnAccelerator

# Operations that read no values but are no views by their signature either.
WITHOUT_KERNEL = {
    "aten._fused_sdp_choice",
    "aten._unsafe_view",
    "aten.empty",
    "aten.empty_like",
    "aten.empty_strided",
    "aten.lift_fresh",
    "aten.new_empty",
    "aten.new_empty_strided",
}


class Launches(Accelerator):
    """Context that counts; `operations` has the number of each by its name, such as "aten.add"."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = Counter[str]()
        self.fused = False  # within an operation that is one kernel on a GPU

    def __enter__(self) -> Launches:
        super().__enter__()
        self._opened.enter_context(_FusedAttention(self))
        return self

    def watch(
        self, operation: Any, args: Any, kwargs: Mapping[str, Any], given: Sequence[Tensor]
    ) -> None:
        """Count an operation that a GPU would launch."""
        name = str(operation.overloadpacket)
        if not self.fused and name not in WITHOUT_KERNEL and not _is_view(operation):
            self.operations[name] += 1


class _FusedAttention(TorchFunctionMode):
    """Context in which attention is counted as one operation: only for devices that it knows torch fuses it."""

    def __init__(self, counted: Launches) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        there = args and isinstance(args[0], OnAccelerator)
        if function is not F.scaled_dot_product_attention or not there:
            return function(*args, **(kwargs or {}))
        self.counted.fused = True
        try:
            return function(*args, **(kwargs or {}))
        finally:
            self.counted.fused = False
            self.counted.operations["aten.scaled_dot_product_attention"] += 1


def _is_view(operation: Any) -> bool:
    if torch.Tag.inplace_view in operation.tags:
        return True
    aliases = [result.alias_info for result in operation._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)
