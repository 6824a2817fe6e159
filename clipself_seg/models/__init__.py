"""Detectron2 meta-architectures: towers and heads put together, and nothing else."""

from clipself_seg.models.cat_seg.guidance_swin import GuidanceSwin
from clipself_seg.models.cat_seg.model import CATSeg
from clipself_seg.models.clipself import CLIPSelf
from clipself_seg.models.panoptic.model import OpenPanoptic
from clipself_seg.models.region_reader import RegionReader

__all__ = ["CATSeg", "CLIPSelf", "GuidanceSwin", "OpenPanoptic", "RegionReader"]
