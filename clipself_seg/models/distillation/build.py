"""``MODEL.CLIPSELF.TARGET`` -> the objective."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode

from clipself_seg.models.distillation.captions import CaptionContrast
from clipself_seg.models.distillation.crops import CropDistillation
from clipself_seg.models.distillation.objective import Objective

# What MODEL.CLIPSELF.TARGET may be -> how its objective is made of a configuration.
OBJECTIVES: dict[str, Callable[[CfgNode], Objective]] = {
    "crops": lambda cfg: CropDistillation(),
    "captions": lambda cfg: CaptionContrast(),
}


def build_objective(cfg: CfgNode) -> Objective:
    """The objective that ``MODEL.CLIPSELF.TARGET`` names."""
    return OBJECTIVES[cfg.MODEL.CLIPSELF.TARGET](cfg)
