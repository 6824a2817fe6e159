"""What two keys must be together: one table, of which a configuration that is read passes every line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from clipself_seg.config.keys import OBJECTIVES


class Relation(NamedTuple):
    """A check of two keys.

    Attributes:
        key: key whose value a message asks to change.
        other: the other key.
        wanted: values that the first key may have, in words.
        holds: function of both values that returns whether they go together.
        of: the only model that it is a check of; "" for all.
    """

    key: str
    other: str
    wanted: str
    holds: Callable[[Any, Any], bool]
    of: str = ""


def of_crops(key: str, default: float) -> Relation:
    """The relation that a weight is its default, or the target is crops, which it belongs to."""
    return Relation(
        key,
        "MODEL.CLIPSELF.TARGET",
        f"{default} but for the target crops",
        lambda weight, target: weight == default or target == "crops",
    )


def of_teacher(key: str) -> Relation:
    """The relation that a weight is 0, or there is a teacher of correlations."""
    return Relation(
        key,
        "MODEL.CLIPSELF.CORRELATION.TEACHER",
        "0 without a teacher of correlations, such as original",
        lambda weight, teacher: not weight or teacher != "none",
    )


RELATIONS: list[Relation] = [
    of_teacher(f"{OBJECTIVES}.CONTEXT"),
    of_teacher(f"{OBJECTIVES}.COHERENCE"),
    of_teacher(f"{OBJECTIVES}.SPATIAL"),
    of_crops(f"{OBJECTIVES}.CROPS", 1.0),
    of_crops(f"{OBJECTIVES}.CONTEXT", 0.0),
    of_crops(f"{OBJECTIVES}.COHERENCE", 0.0),
    of_crops(f"{OBJECTIVES}.SPATIAL", 0.0),
    of_crops(f"{OBJECTIVES}.WHOLE_IMAGES", 0.0),
    of_crops(f"{OBJECTIVES}.OWN_CROPS", 0.0),
    Relation(
        "MODEL.CLIP.ATTENTION",
        "MODEL.CLIP.DENSE",
        '"none" unless DENSE is "token", for both say what the last block does',
        lambda attention, dense: attention == "none" or dense == "token",
    ),
    Relation(
        "MODEL.CLIPSELF.TARGET",
        "MODEL.CLIP.DENSE",
        'another than "captions", whose loss reads no dense features: the gate would not learn',
        lambda target, dense: target != "captions" or dense != "gated_multi_value",
    ),
    Relation(
        "MODEL.MASK_GENERATOR.SOURCE",
        "MODEL.MASK_GENERATOR.KIND",
        "blocks for the kind plain, and for that alone, or masks",
        lambda source, kind: source == "masks" or (source == "blocks") == (kind == "plain"),
    ),
    Relation(
        "MODEL.MASK_GENERATOR.VARIANT",
        "MODEL.MASK_GENERATOR.KIND",
        "fcclip for the kind plain",
        lambda variant, kind: variant == "fcclip" or kind != "plain",
    ),
    Relation(
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD",
        "MODEL.MASK_GENERATOR.KIND",
        "greater than 0, or 0 for the kind plain",
        lambda width, kind: width > 0 or (width == 0 and kind == "plain"),
    ),
    Relation(
        "SOLVER.MIX_WITH_START",
        "MODEL.META_ARCHITECTURE",
        "() for a distillation, whose mixtures with the original TEST.REGIONS.ALPHA_SWEEP evaluates",
        lambda fractions, model: not fractions or model != "CLIPSelf",
    ),
    Relation(
        "MODEL.PRESERVATION.WEIGHT",
        "MODEL.WEIGHTS",
        "0 without a start to preserve, MODEL.WEIGHTS or --model",
        lambda weight, start: not weight or bool(start),
    ),
    Relation(
        "INPUT.DETECTION.MIN_SCALE",
        "INPUT.DETECTION.MAX_SCALE",
        "at most MAX_SCALE",
        lambda least, most: least <= most,
    ),
    Relation(
        "MODEL.ZERO_SHOT.STRIDE",
        "MODEL.ZERO_SHOT.WINDOW",
        "from a sixteenth of WINDOW, for memory grows with its square, to WINDOW",
        lambda stride, window: window <= 16 * stride <= 16 * window or window == 0,
    ),
    Relation(
        "TEST.AUG.ENABLED",
        "TEST.AUG.FLIP",
        "False without FLIP, for nothing else is averaged",
        lambda enabled, flip: flip or not enabled,
    ),
    Relation(
        "TEST.AUG.ENABLED",
        "MODEL.FUSION.MODE",
        "False for the generator alone, since CLIP's scores of masks are what is averaged",
        lambda enabled, mode: not enabled or mode != "generator",
    ),
    Relation(
        "TEST.BACKGROUND.THRESHOLD",
        "TEST.BACKGROUND.WORDS",
        "greater than 0 where no name of the background competes, or nothing is background",
        lambda threshold, words: words or threshold > 0,
    ),
    Relation(
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
        "SOLVER.CLIP_GRADIENTS.ENABLED",
        "greater than 0, for gradients are cut to this norm",
        lambda norm, enabled: norm > 0 or not enabled,
    ),
]
