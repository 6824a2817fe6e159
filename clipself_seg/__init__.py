"""CLIPSelf in Detectron2: dense CLIP features that recognise regions, and open-vocabulary models on them.

    import clipself_seg

    model = clipself_seg.load("catseg-base")
    result = model("photo.jpg", "dog|puppy, grass, sky")
    result.overlay().save("out.png")

The names in `__all__` are public: a version number promises them (docs/index.md). They are imported when they are
first used, so that ``import clipself_seg`` is quick. docs/architecture.md is the map of everything else.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipself_seg.choice import list_models
    from clipself_seg.clip import TextBank, load_clip, save_clip
    from clipself_seg.data.vocabulary import Vocabulary
    from clipself_seg.errors import InputError
    from clipself_seg.prediction.load import load
    from clipself_seg.prediction.onnx.export import export
    from clipself_seg.prediction.results import Detections, PanopticSegmentation, Segmentation

# Operators that torch lacks on mps then run on the CPU; torch reads it when imported.
if sys.platform == "darwin":
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

# Turns in which a thread of torch waits for the others before it sleeps, some 0.2 ms; libgomp reads it when torch is
# imported. Its own 300,000 burn a core for milliseconds where another process keeps a thread from its turn.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Detectron2 and fvcore call it where they are imported, of which torch from 2.15 on warns everybody. A process that
# another one spawns imports them before any module that needs them here.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is", FutureWarning, append=True)
# Detectron2 reads a text of a configuration as Python first; from 3.12 on Python warns of such as runs/2in1.
warnings.filterwarnings("ignore", "invalid decimal literal", Warning, "<unknown>", append=True)

__version__ = "1.0.0"
__all__ = [
    "Detections",
    "InputError",
    "PanopticSegmentation",
    "Segmentation",
    "TextBank",
    "Vocabulary",
    "__version__",
    "export",
    "list_models",
    "load",
    "load_clip",
    "save_clip",
]
# Module -> public names that it has.
_MODULES = {
    "choice": ("list_models",),
    "clip": ("TextBank", "load_clip", "save_clip"),
    "data.vocabulary": ("Vocabulary",),
    "errors": ("InputError",),
    "prediction.load": ("load",),
    "prediction.onnx.export": ("export",),
    "prediction.results": ("Detections", "PanopticSegmentation", "Segmentation"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"clipself_seg.{module}"), name)
    raise AttributeError(f"module 'clipself_seg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
