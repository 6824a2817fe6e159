"""Detectron2 meta-architectures that join towers and heads, a folder a method.

Start with model_protocols.py and build.py.
"""

from clipself_seg import detectron2_needed  # noqa: F401  (says what to do where it is missing)
from clipself_seg.models.cat_seg.cat_seg import CATSeg
from clipself_seg.models.cat_seg.guidance_swin import GuidanceSwin
from clipself_seg.models.clipself import CLIPSelf
from clipself_seg.models.fvit.fvit import FViT
from clipself_seg.models.panoptic.open_panoptic import OpenPanoptic
from clipself_seg.models.paths import ModelHandler
from clipself_seg.models.region_reader import RegionReader
from clipself_seg.models.zero_shot import ZeroShotSegmenter

__all__ = [
    "CATSeg",
    "CLIPSelf",
    "FViT",
    "GuidanceSwin",
    "ModelHandler",
    "OpenPanoptic",
    "RegionReader",
    "ZeroShotSegmenter",
]
