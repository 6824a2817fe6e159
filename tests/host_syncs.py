"""Finds where a GPU would make Python wait, without a GPU: `HostSyncs` records each such operation and its source line.

    model = on_accelerator(model)
    with HostSyncs() as syncs:
        losses = model(samples)
        sum(losses.values()).backward()
    syncs.expect({"clipself_seg/heads/panoptic/mask_losses.py assign": 1})

Tensors of the model compute on the CPU, with the numbers of the CPU, but say that they lie on another device
(`ACCELERATOR` of tools/bench/accelerator.py), so that copies to it and from it are seen, and tensors on the
wrong device refused. Samples stay plain CPU tensors, as a loader gives them. Outside of the context such tensors cannot
be used; `on_host` unwraps them.
"""

import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from bench import accelerator
from bench.accelerator import COPIES, INDEX_PUTS, INDEXED, Accelerator, OnAccelerator
from tests.conftest import ROOT

PACKAGE = str(ROOT / "clipself_seg")
NOT_THE_CALLER = (str(Path(torch.__file__).parent), __file__, accelerator.__file__)
aten = torch.ops.aten
# Operations whose kernels wait for their result, which torch does not mark as such.
WAITING = {"aten.multinomial.default", "torchvision.nms.default"}
WAITING |= {"aten._linalg_check_errors.default"}
Module = TypeVar("Module", bound=nn.Module)


def on_accelerator(module: Module) -> Module:
    """The module itself, with all of its parameters and buffers on `ACCELERATOR`."""
    with Accelerator():
        return module._apply(lambda t: t if isinstance(t, OnAccelerator) else OnAccelerator(t.data))


class Sync(NamedTuple):
    """An operation that makes Python wait for the device.

    Attributes:
        operation: its name in torch, such as "aten.nonzero.default".
        function: file and function of the package (or, outside of it, of the caller), "FILE FUNCTION".
        place: "FILE:LINE".
        source: the line itself.
    """

    operation: str
    function: str
    place: str
    source: str


class HostSyncs(Accelerator):
    """Context in which tensors of `on_accelerator` compute; `syncs` are the operations that would wait, in order.

    Waiting are: values that Python reads (.item(), .tolist(), int(), bool(), .cpu()), shapes that depend on values
    (nonzero, unique, masks as an index, masked_select, repeat_interleave without output_size), torchvision's nms, and
    copies from host memory to the device, which tensors made of Python's values are as well (torch.tensor, new_tensor,
    a list as an index).
    Copies with non_blocking=True do not wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.syncs: list[Sync] = []

    def watch(
        self, operation: Any, args: Any, kwargs: Mapping[str, Any], given: Sequence[Tensor]
    ) -> None:
        """Record an operation that would wait."""
        if _waits(operation, args, kwargs):
            self.syncs.append(_sync(str(operation)))

    def expect(self, allowed: Mapping[str, int]) -> None:
        """Fail with every operation that waited without being allowed to.

        Args:
            allowed: "FILE FUNCTION" -> how many times it waits.
        """
        counted = Counter(sync.function for sync in self.syncs)
        lines = [
            f"{sync.place}: {sync.operation}: {sync.source}"
            for sync in self.syncs
            if counted[sync.function] > allowed.get(sync.function, 0)
        ]
        assert not lines, "a GPU would wait at\n" + "\n".join(dict.fromkeys(lines))
        missing = {name: times for name, times in allowed.items() if counted[name] < times}
        assert not missing, f"allowed to wait, but does not (any more): {missing}"


def _waits(operation: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation with a tensor on the device makes Python wait."""
    name = str(operation)
    if name in COPIES:
        return _copies_over(name, args, kwargs) and not _non_blocking(name, args, kwargs)
    if name in INDEXED | INDEX_PUTS:
        indices = [index for index in args[1] if index is not None]
        masks = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        # One value under a mask is filled in where the mask lies.
        filled = name in INDEX_PUTS and len(indices) == 1 and args[2].numel() == 1
        return (masks and not filled) or any(index.device.type == "cpu" for index in indices)
    if name == "aten.repeat_interleave.Tensor":
        return kwargs.get("output_size") is None
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return name in WAITING or bool(tags & set(operation.tags))


def _copies_over(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a copy goes from one device to another."""
    if name == "aten.copy_.default":
        return args[0].device.type != args[1].device.type
    device = kwargs.get("device")
    return device is not None and torch.device(device).type != args[0].device.type


def _non_blocking(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    positional = args[2] if name == "aten.copy_.default" and len(args) > 2 else False
    return bool(kwargs.get("non_blocking", positional))


def _sync(operation: str) -> Sync:
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith(NOT_THE_CALLER)]
    own = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    frame = (own or frames)[-1]
    path = Path(frame.filename)
    file = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    return Sync(operation, f"{file} {frame.name}", f"{file}:{frame.lineno}", frame.line or "")
