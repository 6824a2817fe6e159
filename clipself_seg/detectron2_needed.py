"""Imported first by the rooms that stand on Detectron2: where it is missing, says the command that brings it.

Imports torchvision before Detectron2 does, the quick way.
"""

from __future__ import annotations

import importlib.util

from clipself_seg.errors import MissingPackage, not_installed
from clipself_seg.torchvision_import import import_torchvision

if importlib.util.find_spec("detectron2") is None:
    raise MissingPackage(not_installed("detectron2"))
import_torchvision()
