"""Checks that Detectron2 is installed; packages that need it import this first, for an error with the way out.

Imports torchvision before Detectron2 does, without `torch._dynamo`, which takes four times as long to import as
torchvision itself.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
import types

from clipself_seg.errors import MissingPackage, not_installed
from clipself_seg.memory import no_collection

_DYNAMO_UTILS = "torch._dynamo.utils"


def import_torchvision() -> None:
    """Imports torchvision, as Detectron2 will, without what it asks only for deterministic RoIAlign on a GPU.

    Its `roi_align` imports one function of `torch._dynamo` at the top (1.3 of 1.5 CPU-seconds), though it means to put
    that off. While torchvision is imported, a module with that function stands there, which asks torch's own when it
    is called; whatever else is looked up in it comes from torch's own, too. Nothing is left in `sys.modules`.
    """
    if _DYNAMO_UTILS in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    stand_in = sys.modules[_DYNAMO_UTILS] = _Deferred(_DYNAMO_UTILS)
    try:
        import torchvision  # noqa: F401
    finally:
        if sys.modules.get(_DYNAMO_UTILS) is stand_in:
            del sys.modules[_DYNAMO_UTILS]


class _Deferred(types.ModuleType):
    """`torch._dynamo.utils`, imported when it is asked for something."""

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        return bool(importlib.import_module(_DYNAMO_UTILS).is_compile_supported(device_type))

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # questions of the import system about any module
            raise AttributeError(name)
        if sys.modules.get(_DYNAMO_UTILS) is self:
            del sys.modules[_DYNAMO_UTILS]
        return getattr(importlib.import_module(_DYNAMO_UTILS), name)


if importlib.util.find_spec("detectron2") is None:
    raise MissingPackage(not_installed("detectron2"))
with no_collection():
    import_torchvision()
    if "clipself_seg.commands" in sys.modules and "triton" not in sys.modules:
        # A command keeps these modules to its end, where Python would search them three more times. A program of a
        # user, who may let go of something that is there now, is left alone. Triton reports what is not collected.
        gc.freeze()
