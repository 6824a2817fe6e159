"""Checks values of configuration keys beyond their types: a table of single keys, and one of pairs of keys."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from clipself_seg.config.device import PATTERN, WANTED


class Check(NamedTuple):
    """A check of single keys: what their values must be in words, the test of a value, and the keys."""

    wanted: str
    holds: Callable[[Any], bool]
    keys: Collection[str]


class Relation(NamedTuple):
    """A check of two keys.

    Attributes:
        key: key whose value a message asks to change.
        other: the other key.
        wanted: values that the first key may have, in words.
        holds: function of both values that returns whether they go together.
    """

    key: str
    other: str
    wanted: str
    holds: Callable[[Any, Any], bool]


def _at_least_0(value: float) -> bool:
    return 0 <= value < math.inf


def _sides(value: Sequence[Any]) -> bool:
    return all(isinstance(side, int) and side >= 1 for side in value)


def _fractions(value: Sequence[Any]) -> bool:
    return all(type(number) in (int, float) and 0 <= number <= 1 for number in value)


def _names(value: Sequence[Any]) -> bool:
    return all(isinstance(name, str) for name in value)


def _decays(value: Sequence[Any]) -> bool:
    return len(value) == 2 and all(isinstance(d, int | float) and 0 <= d < 1 for d in value)


def of_crops(key: str, default: float) -> Relation:
    """The relation that a weight is its default, or the target is crops, which it belongs to."""
    return Relation(
        key,
        "MODEL.CLIPSELF.TARGET",
        f"{default} but for the target crops",
        lambda weight, target: weight == default or target == "crops",
    )


WEIGHT = "MODEL.CLIPSELF.OBJECTIVES."
# Those that need a teacher of correlations.
CORRELATED = tuple(f"{WEIGHT}{name}" for name in ("CONTEXT", "COHERENCE", "SPATIAL"))
# Weight of an objective -> default.
OBJECTIVES = {
    f"{WEIGHT}CROPS": 1.0,
    **dict.fromkeys((*CORRELATED, f"{WEIGHT}WHOLE_IMAGES", f"{WEIGHT}OWN_CROPS"), 0.0),
}
HEAD = "MODEL.SEM_SEG_HEAD."

CHECKS: tuple[Check, ...] = (
    Check(
        "at least 1",
        lambda value: value >= 1,
        (
            *("INPUT.DETECTION.SIDE", "INPUT.MAX_PIXELS", "INPUT.REGIONS.STUDENT_SIZE"),
            *("INPUT.IMAGE_SIZE", "INPUT.MAX_SIZE_TEST", "INPUT.MAX_SIZE_TRAIN"),
            *("INPUT.REGIONS.MAX_SPLIT", "MODEL.CLIP.DENSE_BLOCKS", "MODEL.ZERO_SHOT.STRIDE"),
            *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "MODEL.MASK_FORMER.DEC_LAYERS"),
            *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER"),
            *("SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD", "TEST.DETECTIONS_PER_IMAGE"),
            *("MODEL.PRESERVATION.SAMPLE", "MODEL.DIFFUSION.CROPS_AT_ONCE"),
            *(f"{HEAD}HIDDEN_DIMS", f"{HEAD}NUM_HEADS", f"{HEAD}WINDOW_SIZES"),
            *(f"{HEAD}APPEARANCE_GUIDANCE_DIM", f"{HEAD}APPEARANCE_GUIDANCE_PROJ_DIM"),
            f"{HEAD}TEXT_GUIDANCE_PROJ_DIM",
        ),
    ),
    Check(
        "0 or more",
        lambda value: value >= 0,
        (
            *("DATALOADER.NUM_WORKERS", "INPUT.REGIONS.MAX_REGIONS", "MODEL.CAT_SEG.PAD_LEN"),
            *("MODEL.ZERO_SHOT.WINDOW", "SOLVER.CHECKPOINT_KEEP", "SOLVER.WARMUP_ITERS"),
            *("INPUT.MIN_SIZE_TEST", "MODEL.CLIP.LOW_RANK", "VIS_PERIOD"),
            *("TEST.EVAL_PERIOD", "TEST.EXAMPLES.NUMBER"),
        ),
    ),
    Check("0 or more, and finite", _at_least_0, OBJECTIVES),
    Check(
        "0 or more, and finite",
        _at_least_0,
        (
            *("SOLVER.BACKBONE_MULTIPLIER", "SOLVER.BASE_LR", "SOLVER.EPS"),
            *("SOLVER.CLIP_MULTIPLIER", "SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM"),
            "MODEL.PRESERVATION.WEIGHT",
        ),
    ),
    Check(
        "greater than 0, and finite",
        lambda value: 0 < value < math.inf,
        ("INPUT.DETECTION.MIN_SCALE", "INPUT.DETECTION.MAX_SCALE", "MODEL.ZERO_SHOT.SCALE"),
    ),
    Check("greater than 0", lambda value: value > 0, ["INPUT.REGIONS.CROP_SCALE"]),
    Check("in (0, 1]", lambda value: 0 < value <= 1, ["TEST.EXAMPLES.WEIGHT"]),
    Check(
        "in [0, 1]",
        lambda value: 0 <= value <= 1,
        (
            *("MODEL.CLIPSELF.ALPHA", "MODEL.FUSION.ALPHA", "MODEL.FUSION.BETA"),
            *("MODEL.FUSION.VOID_DISCOUNT", "MODEL.FVIT.SCORE_THRESHOLD"),
            *("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "TEST.BACKGROUND.THRESHOLD"),
            "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD",
        ),
    ),
    Check(
        "numbers, each in [0, 1]",
        _fractions,
        (
            *("TEST.REGIONS.ALPHA_SWEEP", "TEST.PANOPTIC.SWEEP", "TEST.PANOPTIC.VOID_SWEEP"),
            "SOLVER.MIX_WITH_START",
        ),
    ),
    Check("whole numbers, each at least 1", _sides, [f"{HEAD}POOLING_SIZES"]),
    Check(
        "two whole numbers, each at least 1",
        lambda value: len(value) == 2 and _sides(value),
        (
            *(f"{HEAD}FEATURE_RESOLUTION", f"{HEAD}DECODER_DIMS"),
            *(f"{HEAD}DECODER_GUIDANCE_DIMS", f"{HEAD}DECODER_GUIDANCE_PROJ_DIMS"),
        ),
    ),
    Check(
        "whole numbers of pixels, each at least 1",
        _sides,
        ("TEST.REGIONS.SIZES",),
    ),
    Check(
        "1, 0, or -1 for the kind's own",
        lambda value: value in (-1, 0, 1),
        ["MODEL.CLIP_BRANCH.ALIGN_MASKS"],
    ),
    Check(
        "a grey value from 0 to 255, or -1 for the mean colour of CLIP",
        lambda value: -1 <= value <= 255,
        ["MODEL.MASK_GENERATOR.PADDING"],
    ),
    Check("in [0, 2^32), for every run here is repeatable", lambda v: 0 <= v < 2**32, ["SEED"]),
    Check("two numbers in [0, 1)", _decays, ["SOLVER.BETAS"]),
    Check(
        '"WarmupCosineLR" or "WarmupMultiStepLR", and SOLVER.SCHEDULE chooses which',
        lambda value: value in ("WarmupCosineLR", "WarmupMultiStepLR"),
        ["SOLVER.LR_SCHEDULER_NAME"],
    ),
    Check("a path on this machine", lambda value: "://" not in value, ["DATASETS.DATA"]),
    Check(
        "names of data sets", _names, ("DATASETS.TRAIN", "DATASETS.TEST", "TEST.EXAMPLES.DATASETS")
    ),
    Check("paths of files", _names, ["TEST.LABEL_FILES"]),
    Check("names of features", _names, ["MODEL.PLAIN_DECODER.TAPS"]),
    Check(WANTED, lambda value: re.fullmatch(PATTERN, value) is not None, ["MODEL.DEVICE"]),
)

RELATIONS: list[Relation] = [
    *(
        Relation(
            key,
            "MODEL.CLIPSELF.CORRELATION.TEACHER",
            "0 without a teacher of correlations, such as original",
            lambda weight, teacher: not weight or teacher != "none",
        )
        for key in CORRELATED
    ),
    *(of_crops(key, default) for key, default in OBJECTIVES.items()),
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
        "TEST.LABEL_FILES",
        "MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON",
        "() where another file names the classes",
        lambda files, names: not files or not names,
    ),
    Relation(
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
        "SOLVER.CLIP_GRADIENTS.ENABLED",
        "greater than 0, for gradients are cut to this norm",
        lambda norm, enabled: norm > 0 or not enabled,
    ),
]
