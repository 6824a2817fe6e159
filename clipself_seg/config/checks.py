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
    return all(isinstance(one, int | float) and 0 <= one <= 1 for one in value)


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
    "SOLVER.WEIGHT_DECAY_EMBED",
    "SOLVER.WEIGHT_DECAY_NORM",
)
FRACTIONS = (
    "MODEL.CLIPSELF.ALPHA",
    "MODEL.FUSION.ALPHA",
    "MODEL.FUSION.BETA",
    "MODEL.FUSION.VOID_DISCOUNT",
    "MODEL.FVIT.SCORE_THRESHOLD",
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD",
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD",
    "TEST.BACKGROUND.THRESHOLD",
)
# Models that label regions or boxes, not pixels.
WITHOUT_LABELS = ("CLIPSelf", "RegionReader", "FViT", "StockRPN")
SCALES = ("INPUT.DETECTION.MIN_SCALE", "INPUT.DETECTION.MAX_SCALE")
SWITCHES = ("MODEL.CLIP_BRANCH.ALIGN_MASKS", "MODEL.CLIP_BRANCH.ANTIALIAS")
SIDES = ("INPUT.REGIONS.MULTISCALE", "TEST.REGIONS.SIZES")

CHECKS: tuple[Check, ...] = (
    *(Check(key, "at least 1", lambda value: value >= 1) for key in AT_LEAST_ONE),
    *(Check(key, "0 or more", lambda value: value >= 0) for key in AT_LEAST_ZERO),
    *(Check(key, "0 or more, and finite", lambda v: 0 <= v < math.inf) for key in FINITE),
    *(Check(key, "in [0, 1]", lambda value: 0 <= value <= 1) for key in FRACTIONS),
    *(Check(key, "greater than 0, and finite", lambda v: 0 < v < math.inf) for key in SCALES),
    *(Check(key, "1, 0, or -1 for the kind's own", lambda v: v in (-1, 0, 1)) for key in SWITCHES),
    *(Check(key, "whole numbers of pixels, each at least 1", _sides) for key in SIDES),
    Check(
        "SOLVER.LR_SCHEDULER_NAME",
        '"WarmupCosineLR" or "WarmupMultiStepLR", and SOLVER.SCHEDULE chooses which',
        lambda value: value in ("WarmupCosineLR", "WarmupMultiStepLR"),
    ),
    Check("MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", "in [0, 1]", lambda v: 0 <= v <= 1),
    Check("MODEL.MASK_FORMER.OVERSAMPLE_RATIO", "1 or more", lambda value: 1 <= value < math.inf),
    Check(
        "MODEL.MASK_GENERATOR.PADDING",
        "a grey value from 0 to 255, or -1 for the mean colour of CLIP",
        lambda value: -1 <= value <= 255,
    ),
    Check("TEST.WINDOW.OVERLAP", "0 or more, and less than 1", lambda value: 0 <= value < 1),
    Check("SEED", "in [0, 2^32), for every run here is repeatable", lambda v: 0 <= v < 2**32),
    Check("INPUT.REGIONS.CROP_SCALE", "greater than 0", lambda value: value > 0),
    Check("MODEL.CLIPSELF.LOSS_WEIGHT", "greater than 0, and finite", lambda v: 0 < v < math.inf),
    Check("MODEL.ZERO_SHOT.SCALE", "greater than 0, and finite", lambda v: 0 < v < math.inf),
    Check(
        "MODEL.CLIPSELF.CORRELATION.TEMPERATURE",
        "greater than 0, and finite",
        lambda value: 0 < value < math.inf,
    ),
    Check("TEST.REGIONS.ALPHA_SWEEP", "numbers, each in [0, 1]", _fractions),
    Check("TEST.REGIONS.READ", "at least one readout", lambda v: len(v) > 0),
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
        "TEST.REGIONS.GROUPING",
        "MODEL.META_ARCHITECTURE",
        "False but for CLIPSelf and RegionReader, which have dense features",
        lambda grouping, model: not grouping or model in ("CLIPSelf", "RegionReader"),
    ),
    *(
        Relation(
            f"TEST.NUMBERS.{number}",
            "MODEL.META_ARCHITECTURE",
            "False but for models that label pixels",
            lambda wanted, model: not wanted or model not in WITHOUT_LABELS,
        )
        for number in ("BOUNDARY", "ORACLE")
    ),
    Relation(
        "TEST.REGIONS.ALPHA_SWEEP",
        "MODEL.META_ARCHITECTURE",
        "empty but for CLIPSelf, which mixes its student with the original",
        lambda sweep, model: not sweep or model == "CLIPSelf",
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
        "TEST.PANOPTIC.SWEEP",
        "MODEL.META_ARCHITECTURE",
        "empty but for OpenPanoptic, which has the two exponents",
        lambda sweep, model: not sweep or model == "OpenPanoptic",
    ),
    Relation(
        "TEST.PANOPTIC.VOID_SWEEP",
        "MODEL.META_ARCHITECTURE",
        "empty but for OpenPanoptic, whose void CLIP may lower",
        lambda sweep, model: not sweep or model == "OpenPanoptic",
    ),
    Relation(
        "MODEL.FUSION.VOID_DISCOUNT",
        "MODEL.META_ARCHITECTURE",
        "0 but for OpenPanoptic, whose void CLIP may lower",
        lambda weight, model: weight == 0 or model == "OpenPanoptic",
    ),
    Relation(
        "MODEL.FUSION.SOURCE",
        "MODEL.META_ARCHITECTURE",
        '"weights" but for OpenPanoptic, the only one whose weights carry exponents',
        lambda source, model: source == "weights" or model == "OpenPanoptic",
    ),
    Relation(
        "TEST.REGIONS.SIZES",
        "MODEL.META_ARCHITECTURE",
        "empty but for CLIPSelf and RegionReader, which read regions at several sizes",
        lambda sizes, model: not sizes or model in ("CLIPSelf", "RegionReader"),
    ),
    Relation(
        "INPUT.REGIONS.MIN_AREA",
        "INPUT.REGIONS.MAX_AREA",
        "at most MAX_AREA, or no proposal is left",
        lambda least, most: least <= most,
    ),
    Relation(
        "MODEL.ZERO_SHOT.STRIDE",
        "MODEL.ZERO_SHOT.WINDOW",
        "from a sixteenth of WINDOW, for memory grows with its square, to WINDOW",
        lambda stride, window: window <= 16 * stride <= 16 * window or window == 0,
    ),
    Relation(
        "MODEL.ZERO_SHOT.MASKS",
        "MODEL.META_ARCHITECTURE",
        "empty but for ZeroShotSegmenter, which can read pixels within masks",
        lambda masks, model: not masks or model == "ZeroShotSegmenter",
    ),
    Relation(
        "MODEL.ZERO_SHOT.CORRELATION",
        "MODEL.ZERO_SHOT.MASKS",
        '"clip" where there are no masks, for nothing else asks how alike places are',
        lambda whose, masks: whose == "clip" or bool(masks),
    ),
    Relation(
        "TEST.SLIDING_WINDOW",
        "MODEL.META_ARCHITECTURE",
        "False for ZeroShotSegmenter, whose windows are MODEL.ZERO_SHOT.WINDOW and STRIDE",
        lambda sliding, model: not sliding or model != "ZeroShotSegmenter",
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


# The project's meta-architectures. Of another registered one nobody here knows which keys below
# MODEL and INPUT it follows; the trainer and the loader are the project's own for it as well.
ARCHITECTURES = (
    "CLIPSelf",
    "RegionReader",
    "CATSeg",
    "OpenPanoptic",
    "FViT",
    "StockRPN",
    "ZeroShotSegmenter",
)
OF_THE_ARCHITECTURE = ("MODEL.", "INPUT.")
# Keys below that one of them follows all the same, by the beginnings of their names.
FOLLOWED: dict[str, tuple[str, ...]] = {
    "StockRPN": (
        "MODEL.FPN.",
        "MODEL.PROPOSAL_GENERATOR.",
        "MODEL.ANCHOR_GENERATOR.",
        "MODEL.RPN.",
        "MODEL.PIXEL_MEAN",
        "MODEL.PIXEL_STD",
    )
}


class Unfollowed(NamedTuple):
    """A key without effect.

    Attributes:
        key: full name; one that ends with "." or "_" stands for all keys that begin with it.
        instead: what happens in its place, as the message says it.
        published: values of CAT-Seg's files, which pass besides the default.
    """

    key: str
    instead: str
    published: tuple[Any, ...] = ()

    def covers(self, key: str) -> bool:
        """Whether the entry is about a key, given by its full name."""
        return key.startswith(self.key) if self.key[-1] in "._" else key == self.key


DETECTOR = "no model here reads this key of Detectron2's detectors"
FPN_HEAD = "CAT-Seg's decoder does not read this key of Detectron2's SemSegFPNHead"
PROPOSALS = "models find their own regions; distillation reads those of its data sets"
NORMALISED = "images are normalised as their CLIP or guidance backbone was trained"
PROMPTS = "there is no prompt tuning"
SEEN = "the classes of the training vocabulary are seen ones, see TEST.TRAIN_VOCABULARY"
ADAMW = "the optimiser is AdamW with SOLVER.BETAS"
BIASES = "biases learn at the rate of the other parameters, and their decay is the method's"
NORM = "gradients are scaled down where their Euclidean norm over all parameters exceeds CLIP_VALUE"
SCHEDULE = "SOLVER.SCHEDULE, WARMUP_ITERS and WARMUP_FACTOR describe the learning rate"
SAMPLER = "each epoch takes the images once, in an order drawn from SEED"
EMPTY = "the data set decides which images are trained on"
AUGMENTED = "images are evaluated once, neither flipped nor resized to several sizes"
BATCH_NORMS = "the statistics of batch norms are not measured again"
# Mean and standard deviation of ImageNet in RGB, for the guidance backbones of version 1.
IMAGENET_MEAN = [123.675, 116.28, 103.53]
IMAGENET_STD = [58.395, 57.12, 57.375]

# Keys that nothing reads: the config.yaml of an earlier run names them with these values.
RETIRED: dict[str, Any] = {
    # DeepLab's.
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 256,
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": [6, 12, 18],
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": 0.1,
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": "hard_pixel_mining",
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [48],
    "MODEL.SEM_SEG_HEAD.PROJECT_FEATURES": ["res2"],
    "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV": False,
    # Numbers that no published code defines, and that are no longer measured.
    "TEST.NUMBERS.SIMILARITY": "",
    "TEST.NUMBERS.NAMING": False,
    "TEST.NUMBERS.SYNONYMS": 0,
    "TEST.NUMBERS.GAP": False,
}

UNFOLLOWED: tuple[Unfollowed, ...] = (
    Unfollowed("VERSION", "files of older versions are not converted"),
    Unfollowed("CUDNN_BENCHMARK", "cuDNN's choice of kernels is left to PyTorch", (True,)),
    Unfollowed("VIS_PERIOD", "clipself-seg predict draws predictions"),
    Unfollowed("GLOBAL.HACK", "nothing reads it"),
    # The models.
    Unfollowed("MODEL.LOAD_PROPOSALS", PROPOSALS),
    Unfollowed("MODEL.MASK_ON", DETECTOR),
    Unfollowed("MODEL.KEYPOINT_ON", DETECTOR),
    Unfollowed("MODEL.FPN.", DETECTOR),
    Unfollowed("MODEL.PROPOSAL_GENERATOR.", DETECTOR),
    Unfollowed("MODEL.ANCHOR_GENERATOR.", DETECTOR),
    Unfollowed("MODEL.RPN.", DETECTOR),
    Unfollowed("MODEL.ROI_", DETECTOR),
    Unfollowed("MODEL.PANOPTIC_FPN.", DETECTOR),
    Unfollowed("MODEL.RETINANET.", DETECTOR),
    Unfollowed("MODEL.PIXEL_MEAN", NORMALISED, (IMAGENET_MEAN,)),
    Unfollowed("MODEL.PIXEL_STD", NORMALISED, (IMAGENET_STD,)),
    Unfollowed("MODEL.CLIP_PIXEL_", NORMALISED),
    Unfollowed("MODEL.PROMPT_ENSEMBLE", "MODEL.PROMPT_ENSEMBLE_TYPE names the sentences"),
    Unfollowed("MODEL.SEM_SEG_HEAD.NAME", "MODEL.META_ARCHITECTURE decides", ("CATSegHead",)),
    Unfollowed(
        "MODEL.SEM_SEG_HEAD.IN_FEATURES",
        "MODEL.CAT_SEG.GUIDANCE decides which features guide",
        (["res2", "res3", "res4"],),
    ),
    Unfollowed(
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
        "the vocabulary decides, that of the data set or TRAIN_CLASS_JSON and TEST_CLASS_JSON",
        (171,),
    ),
    Unfollowed("MODEL.SEM_SEG_HEAD.CONVS_DIM", "DECODER_DIMS are the channels of the decoder"),
    Unfollowed("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", FPN_HEAD),
    Unfollowed("MODEL.SEM_SEG_HEAD.NORM", FPN_HEAD),
    Unfollowed("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", "there is one loss, whose weight is 1"),
    Unfollowed("MODEL.SEM_SEG_HEAD.PROMPT_", PROMPTS),
    Unfollowed("MODEL.SEM_SEG_HEAD.TRAIN_CLASS_INDEXES", SEEN),
    Unfollowed("MODEL.SEM_SEG_HEAD.TEST_CLASS_INDEXES", SEEN),
    # The data.
    Unfollowed("INPUT.RANDOM_FLIP", "the task decides whether training images are flipped"),
    Unfollowed("INPUT.MASK_FORMAT", "masks are bitmaps"),
    Unfollowed("INPUT.DATASET_MAPPER_NAME", "the model decides how images are read"),
    Unfollowed("DATASETS.PROPOSAL_FILES_", PROPOSALS),
    Unfollowed("DATASETS.PRECOMPUTED_PROPOSAL_", PROPOSALS),
    Unfollowed(
        "DATASETS.VAL_ALL",
        "DATASETS.TEST names what is evaluated",
        (("coco_2017_val_all_stuff_sem_seg",),),
    ),
    Unfollowed("DATALOADER.ASPECT_RATIO_GROUPING", "images of a batch are cut to one size"),
    Unfollowed("DATALOADER.SAMPLER_TRAIN", SAMPLER),
    Unfollowed("DATALOADER.REPEAT_", SAMPLER),
    Unfollowed("DATALOADER.FILTER_EMPTY_ANNOTATIONS", EMPTY),
    # The optimiser and its schedule.
    Unfollowed("SOLVER.OPTIMIZER", ADAMW),
    Unfollowed("SOLVER.MOMENTUM", ADAMW),
    Unfollowed("SOLVER.NESTEROV", ADAMW),
    Unfollowed("SOLVER.BIAS_LR_FACTOR", BIASES),
    Unfollowed("SOLVER.WEIGHT_DECAY_BIAS", BIASES),
    Unfollowed("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", NORM, ("full_model",)),
    Unfollowed("SOLVER.CLIP_GRADIENTS.NORM_TYPE", NORM),
    Unfollowed("SOLVER.BASE_LR_END", "the cosine ends at 0"),
    Unfollowed("SOLVER.WARMUP_METHOD", "the warm-up is linear"),
    Unfollowed("SOLVER.NUM_DECAYS", SCHEDULE),
    Unfollowed("SOLVER.RESCALE_INTERVAL", SCHEDULE),
    Unfollowed("SOLVER.POLY_LR_", SCHEDULE),
    Unfollowed(
        "SOLVER.REFERENCE_WORLD_SIZE",
        "IMS_PER_BATCH counts the images of all processes, and nothing is rescaled",
    ),
    # The evaluation.
    Unfollowed("TEST.EXPECTED_RESULTS", "results are written to results.json and not judged"),
    Unfollowed("TEST.KEYPOINT_OKS_SIGMAS", DETECTOR),
    Unfollowed("TEST.AUG.ENABLED", AUGMENTED),
    Unfollowed("TEST.AUG.MIN_SIZES", AUGMENTED, ((256, 384, 512, 640, 768, 896),)),
    Unfollowed("TEST.AUG.MAX_SIZE", AUGMENTED, (3584,)),
    Unfollowed("TEST.AUG.FLIP", AUGMENTED),
    Unfollowed("TEST.PRECISE_BN.", BATCH_NORMS),
)


def unfollowed(key: str, architecture: str) -> Unfollowed | None:
    """The entry of a key that has no effect.

    Args:
        key: full name.
        architecture: ``MODEL.META_ARCHITECTURE``.

    Returns:
        None if the key is followed, or may be by an architecture that is not the project's.
    """
    others = OF_THE_ARCHITECTURE if architecture not in ARCHITECTURES else ()
    if key.startswith(FOLLOWED.get(architecture, others)):
        return None
    return next((entry for entry in UNFOLLOWED if entry.covers(key)), None)
