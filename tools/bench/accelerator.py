"""A simulated GPU: its tensors are computed on the CPU, so that code for GPUs can be counted and tested without one.

    with Accelerator():
        model = model.to(ACCELERATOR)
        model(samples)

Subclasses of `Accelerator` see each operation on such tensors. Outside of the context these cannot be used; `on_host`
unwraps them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

# Of the device types that torch has, this one needs no driver, and autograd runs it on the calling thread.
ACCELERATOR = torch.device("lazy")
COPIES = {"aten._to_copy.default", "aten.copy_.default"}
INDEXED = {"aten.index.Tensor"}
INDEX_PUTS = {"aten.index_put.default", "aten.index_put_.default"}
INDEX_PUTS |= {"aten._index_put_impl_.default", "aten._unsafe_index_put.default"}
Context = TypeVar("Context", bound="Accelerator")


class OnAccelerator(Tensor):
    """A tensor that reports `ACCELERATOR` as its device; `on_cpu` has the numbers."""

    on_cpu: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> OnAccelerator:
        wrapped = Tensor._make_wrapper_subclass(
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            layout=on_cpu.layout,
            device=ACCELERATOR,
            requires_grad=on_cpu.requires_grad,
        )
        wrapped.on_cpu = on_cpu
        return wrapped

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if str(operation) == "aten._has_compatible_shallow_copy_type.default":
            return True  # asked where one takes another's shape
        raise RuntimeError(f"{operation} on {ACCELERATOR} outside of its context")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"on the accelerator: {self.on_cpu!r}"

    def __format__(self, specification: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), specification)

    @property
    def data(self) -> Tensor:
        """The numbers, which change unseen by gradients; `nn.Module.double` assigns others."""
        return OnAccelerator(self.on_cpu.data)

    @data.setter
    def data(self, values: Tensor) -> None:
        assert isinstance(values, OnAccelerator)
        Tensor.data.__set__(self, values)  # type: ignore[attr-defined]
        self.on_cpu = values.on_cpu

    def tolist(self) -> Any:
        """The values as a list, by a copy, as for tensors of a GPU."""
        return self.cpu().tolist()


def on_host(values: Any) -> Any:
    """Nested values with plain tensors in place of those on `ACCELERATOR`."""
    return tree_map(lambda v: v.on_cpu if isinstance(v, OnAccelerator) else v, values)


def wanted_there(kwargs: Mapping[str, Any]) -> bool:
    """True if an operation with these arguments is asked for tensors on `ACCELERATOR`."""
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == ACCELERATOR.type


class Accelerator(TorchDispatchMode):
    """Context in which tensors on `ACCELERATOR` are made and compute, with none of another device, as on a GPU."""

    def watch(
        self, operation: Any, args: Any, kwargs: Mapping[str, Any], given: Sequence[Tensor]
    ) -> None:
        """Does nothing; a subclass is called before each operation on `ACCELERATOR`.

        Args:
            operation: with `str(operation)`, such as "aten.add.Tensor".
            args: its arguments.
            kwargs: its arguments by name.
            given: all tensors among them.
        """

    def __enter__(self: Context) -> Context:
        self._opened = contextlib.ExitStack()
        self._opened.enter_context(_known_to_torch())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._opened.close()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given: list[Tensor] = []

        def collected(value: Any) -> Any:
            if isinstance(value, Tensor):
                given.append(value)
            return value.on_cpu if isinstance(value, OnAccelerator) else value

        kwargs = kwargs or {}
        host_args = _each(collected, args)
        host_kwargs = {name: _each(collected, value) for name, value in kwargs.items()}
        computed_there = any(isinstance(tensor, OnAccelerator) for tensor in given)
        if computed_there or wanted_there(kwargs):
            self.watch(operation, args, kwargs, given)
            _refuse_mixed_devices(operation, args, given)
        if kwargs.get("device") is not None:
            computed_there = wanted_there(kwargs)
            if computed_there:
                host_kwargs["device"] = torch.device("cpu")
            host_kwargs.pop("pin_memory", None)
        outputs = operation(*host_args, **host_kwargs)
        # What works in place gives back what it was given.
        known = {id(t.on_cpu): t for t in given if isinstance(t, OnAccelerator)}
        return _each(_wrapper(known), outputs) if computed_there else outputs


def _each(function: Callable[[Any], Any], values: Any) -> Any:
    """Values as operations take and give them, nested lists and tuples at most: `tree_map` takes much longer."""
    if isinstance(values, (list, tuple)):
        return type(values)([_each(function, value) for value in values])
    return function(values)


@contextlib.contextmanager
def _known_to_torch() -> Iterator[None]:
    """Let torch know the device as one of a GPU's kind."""
    if hasattr(torch, ACCELERATOR.type):  # one context within another
        yield
        return
    before = torch._C._only_lift_cpu_tensors()
    devices = torch_optimizer._get_fused_kernels_supported_devices
    # torch.tensor(values, device=...) then copies where the context sees it.
    torch._C._set_only_lift_cpu_tensors(True)
    torch_optimizer._get_fused_kernels_supported_devices = lambda: [*devices(), ACCELERATOR.type]
    setattr(torch, ACCELERATOR.type, torch.cpu)  # its module, for torch.utils.checkpoint
    try:
        yield
    finally:
        delattr(torch, ACCELERATOR.type)
        torch_optimizer._get_fused_kernels_supported_devices = devices
        torch._C._set_only_lift_cpu_tensors(before)


def _refuse_mixed_devices(operation: Any, args: Any, given: Sequence[Tensor]) -> None:
    """Refuse tensors of the CPU as a GPU does, single values and indices aside."""
    kinds = {tensor.device.type for tensor in given if tensor.dim() or tensor.device.type != "cpu"}
    if len(kinds) < 2:
        return
    name = str(operation)
    indexed = name in INDEXED | INDEX_PUTS and args[0].device.type != "cpu"
    if name not in COPIES and not indexed:
        raise RuntimeError(f"{operation}: tensors on two devices")


def _wrapper(known: Mapping[int, OnAccelerator]) -> Callable[[Any], Any]:
    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        same = known.get(id(value))
        if same is None:
            return OnAccelerator(value)
        if same.shape != value.shape:  # such as `squeeze_`
            Tensor.data.__set__(same, OnAccelerator(value))  # type: ignore[attr-defined]
        return same

    return wrap
