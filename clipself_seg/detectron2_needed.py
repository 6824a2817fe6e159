"""Imported first by the rooms that stand on Detectron2: where it is missing, says the command that brings it."""

from __future__ import annotations

import importlib.util

from clipself_seg.errors import MissingPackage, not_installed

if importlib.util.find_spec("detectron2") is None:
    raise MissingPackage(not_installed("detectron2"))
