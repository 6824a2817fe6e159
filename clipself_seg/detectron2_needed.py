"""Checks that Detectron2 is installed; packages that need it import this first, for an error with the way out.

Imports torchvision before Detectron2 does, the quick way.
"""

from __future__ import annotations

import importlib.util

from clipself_seg.errors import MissingPackage, not_installed
from clipself_seg.torchvision_import import import_torchvision

if importlib.util.find_spec("detectron2") is None:
    raise MissingPackage(not_installed("detectron2"))
import_torchvision()
