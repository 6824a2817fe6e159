"""Builds the training objective that ``MODEL.CLIPSELF.TARGET`` names."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode

from clipself_seg.errors import InputError
from clipself_seg.models.distillation.captions import CaptionContrast
from clipself_seg.models.distillation.correlation_teachers import correlation_teacher
from clipself_seg.models.distillation.crops import CropDistillation
from clipself_seg.models.distillation.objective import Objective
from clipself_seg.models.distillation.texts import RegionText
from clipself_seg.models.distillation.weighted import (
    CONTEXTS,
    TERMS,
    CorrelationSettings,
    WeightedTerms,
)


def _crops(cfg: CfgNode) -> Objective:
    """`CropDistillation`, or a sum of further terms with it, or without it."""
    keys = cfg.MODEL.CLIPSELF.OBJECTIVES
    weights = {
        "CROPS": keys.CROPS,
        "CONTEXT": keys.CONTEXT,
        "COHERENCE": keys.COHERENCE,
        "SPATIAL": keys.SPATIAL,
        "WHOLE_IMAGES": keys.WHOLE_IMAGES,
        "OWN_CROPS": keys.OWN_CROPS,
    }
    asked = {name for name, weight in weights.items() if weight > 0}
    if not asked:
        raise InputError(
            "every weight of MODEL.CLIPSELF.OBJECTIVES is 0: give one of "
            f"{', '.join(weights)} a greater one, such as CROPS 1.0"
        )
    if asked == {"CONTEXT"}:
        raise InputError(
            "MODEL.CLIPSELF.OBJECTIVES.CONTEXT trains queries alone, of which no readout is made: give CROPS or "
            "another one of MODEL.CLIPSELF.OBJECTIVES a weight beside it"
        )
    correlation = cfg.MODEL.CLIPSELF.CORRELATION
    if correlation.TEACHER != "none" and not any(TERMS[name].correlated for name in asked):
        raise InputError(
            f"MODEL.CLIPSELF.CORRELATION.TEACHER is {correlation.TEACHER}, but nothing asks for it: give CONTEXT, "
            "COHERENCE or SPATIAL of MODEL.CLIPSELF.OBJECTIVES a weight, or leave it none"
        )
    if weights == {name: float(name == "CROPS") for name in weights}:
        return CropDistillation()
    settings = CorrelationSettings(
        teacher=correlation_teacher(correlation.TEACHER),
        temperature=correlation.TEMPERATURE,
        context=CONTEXTS[correlation.CONTEXT],
    )
    return WeightedTerms(weights, settings)


def _texts(cfg: CfgNode) -> RegionText:
    texts = cfg.MODEL.CLIPSELF.TEXTS
    return RegionText(
        loss=texts.LOSS, negatives=texts.NEGATIVES, templates=texts.TEMPLATES, seed=cfg.SEED
    )


# What MODEL.CLIPSELF.TARGET may be -> how its objective is made of a configuration.
OBJECTIVES: dict[str, Callable[[CfgNode], Objective]] = {
    "crops": _crops,
    "texts": _texts,
    "captions": lambda cfg: CaptionContrast(),
}


def build_objective(cfg: CfgNode) -> Objective:
    """The objective that ``MODEL.CLIPSELF.TARGET`` names.

    Raises:
        InputError: weights and teacher of correlations do not go together, or there is no such teacher.
    """
    return OBJECTIVES[cfg.MODEL.CLIPSELF.TARGET](cfg)
