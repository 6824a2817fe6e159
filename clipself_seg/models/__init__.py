"""Detectron2 meta-architectures: towers and heads put together, and nothing else."""

from clipself_seg.models.cat_seg import CATSeg
from clipself_seg.models.clipself import CLIPSelf
from clipself_seg.models.guidance_swin import GuidanceSwin
from clipself_seg.models.open_panoptic import OpenPanoptic
from clipself_seg.models.region_reader import RegionReader

__all__ = ["CATSeg", "CLIPSelf", "GuidanceSwin", "OpenPanoptic", "RegionReader"]
