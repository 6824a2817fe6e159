"""``MODEL.CLIPSELF.TARGET`` -> the objective."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode

from clipself_seg.models.distillation.captions import CaptionContrast
from clipself_seg.models.distillation.crops import CropDistillation
from clipself_seg.models.distillation.objective import Objective
from clipself_seg.models.distillation.texts import RegionText


def _texts(cfg: CfgNode) -> RegionText:
    texts = cfg.MODEL.CLIPSELF.TEXTS
    return RegionText(
        loss=texts.LOSS, negatives=texts.NEGATIVES, templates=texts.TEMPLATES, seed=cfg.SEED
    )


# What MODEL.CLIPSELF.TARGET may be -> how its objective is made of a configuration.
OBJECTIVES: dict[str, Callable[[CfgNode], Objective]] = {
    "crops": lambda cfg: CropDistillation(),
    "texts": _texts,
    "captions": lambda cfg: CaptionContrast(),
}


def build_objective(cfg: CfgNode) -> Objective:
    """The objective that ``MODEL.CLIPSELF.TARGET`` names."""
    return OBJECTIVES[cfg.MODEL.CLIPSELF.TARGET](cfg)
