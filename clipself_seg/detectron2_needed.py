"""Checks that Detectron2 is installed; packages that need it import this first, for an error with the way out.

Imports torchvision before Detectron2 does, without what Detectron2 does not use of it: its models and data sets, and
`torch._dynamo`, which takes four times as long to import as torchvision itself.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
import types

from clipself_seg.errors import MissingPackage, not_installed
from clipself_seg.memory import no_collection

_DYNAMO_UTILS = "torch._dynamo.utils"
_UNUSED = ("torchvision.datasets", "torchvision.models")


def import_torchvision() -> None:
    """Imports torchvision, as Detectron2 will, without its models and data sets, and without `torch._dynamo`.

    Its `roi_align` imports one function of `torch._dynamo` at the top (1.3 of 1.5 CPU-seconds), though it means to put
    that off. It is asked only for deterministic RoIAlign on a GPU. While torchvision is imported, modules stand in the
    place of these, which import the real ones when they are asked for something. Nothing is left in `sys.modules`.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    modules = [_DynamoUtils(_DYNAMO_UTILS), *map(_Deferred, _UNUSED)]
    stand_ins = {one.__name__: one for one in modules if one.__name__ not in sys.modules}
    sys.modules |= stand_ins
    try:
        import torchvision  # noqa: F401
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


class _Deferred(types.ModuleType):
    """A module that is imported when it is asked for something."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # questions of the import system about any module
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _DynamoUtils(_Deferred):
    """`torch._dynamo.utils`, with the function that `roi_align` imports."""

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        return bool(importlib.import_module(_DYNAMO_UTILS).is_compile_supported(device_type))


if importlib.util.find_spec("detectron2") is None:
    raise MissingPackage(not_installed("detectron2"))
with no_collection():
    import_torchvision()
    if "clipself_seg.commands" in sys.modules and "triton" not in sys.modules:
        # A command keeps these modules to its end, where Python would search them three more times. A program of a
        # user, who may let go of something that is there now, is left alone. Triton reports what is not collected.
        gc.freeze()
