"""Checks values of configuration keys beyond their types: a table of single keys, and one of pairs of keys."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Check(NamedTuple):
    """A check of one key: the key, what its value must be in words, and the test of a value."""

    key: str
    wanted: str
    holds: Callable[[Any], bool]


class Relation(NamedTuple):
    """A check of two keys: both, what the first one's value must be in words, and the test of both values."""

    key: str
    other: str
    wanted: str
    holds: Callable[[Any, Any], bool]


def _sides(value: Sequence[Any]) -> bool:
    return all(isinstance(side, int) and side >= 1 for side in value)


def _fractions(value: Sequence[Any]) -> bool:
    return all(type(number) in (int, float) and 0 <= number <= 1 for number in value)


def _names(value: Sequence[Any]) -> bool:
    return all(isinstance(name, str) for name in value)


def _decays(value: Sequence[Any]) -> bool:
    return len(value) == 2 and all(isinstance(d, int | float) and 0 <= d < 1 for d in value)


def _unless_crops(default: float) -> Callable[[Any, Any], bool]:
    """Whether a weight is its default, or the target is crops, which it belongs to."""
    return lambda weight, target: weight == default or target == "crops"


AT_LEAST_ONE = (
    "INPUT.DETECTION.SIDE",
    "INPUT.MAX_PIXELS",
    "INPUT.REGIONS.STUDENT_SIZE",
    "INPUT.REGIONS.MAX_SPLIT",
    "MODEL.CLIP.DENSE_BLOCKS",
    "MODEL.CLIPSELF.TEXTS.NEGATIVES",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS",
    "MODEL.ZERO_SHOT.STRIDE",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_ITER",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.LOG_PERIOD",
    "TEST.DETECTIONS_PER_IMAGE",
    "TEST.WINDOW.SIZE",
    "TEST.WINDOW.CANVAS",
)
AT_LEAST_ZERO = (
    "DATALOADER.NUM_WORKERS",
    "INPUT.REGIONS.MAX_REGIONS",
    "MODEL.CAT_SEG.PAD_LEN",
    "MODEL.ZERO_SHOT.WINDOW",
    "SOLVER.CHECKPOINT_KEEP",
    "SOLVER.WARMUP_ITERS",
    "TEST.EVAL_PERIOD",
)
OBJECTIVES = tuple(
    f"MODEL.CLIPSELF.OBJECTIVES.{name}"
    for name in ("CROPS", "CONTEXT", "COHERENCE", "SPATIAL", "WHOLE_IMAGES", "OWN_CROPS")
)
# Those that need a teacher of correlations.
CORRELATED = OBJECTIVES[1:4]
FINITE = (
    *OBJECTIVES,
    "SOLVER.BACKBONE_MULTIPLIER",
    "SOLVER.BASE_LR",
    "SOLVER.CLIP_MULTIPLIER",
    "SOLVER.EPS",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_NORM",
)
FRACTIONS = (
    "MODEL.CLIPSELF.ALPHA",
    "MODEL.FUSION.ALPHA",
    "MODEL.FUSION.BETA",
    "MODEL.FUSION.VOID_DISCOUNT",
    "MODEL.FVIT.SCORE_THRESHOLD",
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD",
    "TEST.BACKGROUND.THRESHOLD",
)
SCALES = ("INPUT.DETECTION.MIN_SCALE", "INPUT.DETECTION.MAX_SCALE")
SWEEPS = ("TEST.REGIONS.ALPHA_SWEEP", "TEST.PANOPTIC.SWEEP", "TEST.PANOPTIC.VOID_SWEEP")
SIDES = ("INPUT.REGIONS.MULTISCALE", "TEST.REGIONS.SIZES")

CHECKS: tuple[Check, ...] = (
    *(Check(key, "at least 1", lambda value: value >= 1) for key in AT_LEAST_ONE),
    *(Check(key, "0 or more", lambda value: value >= 0) for key in AT_LEAST_ZERO),
    *(Check(key, "0 or more, and finite", lambda v: 0 <= v < math.inf) for key in FINITE),
    *(Check(key, "in [0, 1]", lambda value: 0 <= value <= 1) for key in FRACTIONS),
    *(Check(key, "greater than 0, and finite", lambda v: 0 < v < math.inf) for key in SCALES),
    Check(
        "MODEL.CLIP_BRANCH.ALIGN_MASKS", "1, 0, or -1 for the kind's own", lambda v: v in (-1, 0, 1)
    ),
    *(Check(key, "whole numbers of pixels, each at least 1", _sides) for key in SIDES),
    Check(
        "SOLVER.LR_SCHEDULER_NAME",
        '"WarmupCosineLR" or "WarmupMultiStepLR", and SOLVER.SCHEDULE chooses which',
        lambda value: value in ("WarmupCosineLR", "WarmupMultiStepLR"),
    ),
    Check(
        "MODEL.MASK_GENERATOR.PADDING",
        "a grey value from 0 to 255, or -1 for the mean colour of CLIP",
        lambda value: -1 <= value <= 255,
    ),
    Check("TEST.WINDOW.OVERLAP", "0 or more, and less than 1", lambda value: 0 <= value < 1),
    Check("SEED", "in [0, 2^32), for every run here is repeatable", lambda v: 0 <= v < 2**32),
    Check("INPUT.REGIONS.CROP_SCALE", "greater than 0", lambda value: value > 0),
    Check("MODEL.ZERO_SHOT.SCALE", "greater than 0, and finite", lambda v: 0 < v < math.inf),
    Check(
        "MODEL.CLIPSELF.CORRELATION.TEMPERATURE",
        "greater than 0, and finite",
        lambda value: 0 < value < math.inf,
    ),
    *(Check(key, "names of data sets", _names) for key in ("DATASETS.TRAIN", "DATASETS.TEST")),
    *(Check(key, "numbers, each in [0, 1]", _fractions) for key in SWEEPS),
    Check("SOLVER.BETAS", "two numbers in [0, 1)", _decays),
    Check(
        "MODEL.DEVICE",
        '"cpu", "cuda" or "cuda:" with a number',
        lambda value: re.fullmatch(r"cpu|cuda(:\d+)?", value) is not None,
    ),
)

RELATIONS: tuple[Relation, ...] = (
    *(
        Relation(
            key,
            "MODEL.CLIPSELF.CORRELATION.TEACHER",
            "0 without a teacher of correlations, such as original",
            lambda weight, teacher: not weight or teacher != "none",
        )
        for key in CORRELATED
    ),
    *(
        Relation(
            key,
            "MODEL.CLIPSELF.TARGET",
            f"{default} but for the target crops",
            _unless_crops(default),
        )
        for key, default in zip(OBJECTIVES, (1.0, *5 * (0.0,)))
    ),
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
        "MODEL.ZERO_SHOT.CORRELATION",
        "MODEL.ZERO_SHOT.MASKS",
        '"clip" where there are no masks, for nothing else asks how alike places are',
        lambda whose, masks: whose == "clip" or bool(masks),
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
)
