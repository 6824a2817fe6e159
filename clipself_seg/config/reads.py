"""Which keys each model reads, so that one without effect is refused where somebody wrote it.

A name that ends with "." or "_" stands for all keys that begin with it. The evaluation, the data and the trainer of a
model's task count as the model. A model of another project declares its own: ``READS["MyModel"] = (...)``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from clipself_seg.config.keys import CLIP_BACKBONE


class When(NamedTuple):
    """Names of keys that are read with one value of another key alone."""

    names: tuple[str, ...]
    key: str
    value: object


# What the trainer and the evaluations read, whatever the model.
ALL: list[str | When] = [
    *("MODEL.META_ARCHITECTURE", "MODEL.WEIGHTS", "MODEL.DEVICE", "INPUT.MAX_PIXELS"),
    *(
        "DATASETS.DATA",
        "DATASETS.TRAIN",
        "DATASETS.TEST",
        "DATALOADER.NUM_WORKERS",
        "OUTPUT_DIR",
        "SEED",
    ),
    *("SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATE", "SOLVER.MAX_ITER", "TEST.EVAL_PERIOD"),
    *("SOLVER.BASE_LR", "SOLVER.SCHEDULE", "SOLVER.LR_SCHEDULER_NAME", "SOLVER.WARMUP_ITERS"),
    *("SOLVER.WARMUP_FACTOR", "SOLVER.BETAS", "SOLVER.EPS", "SOLVER.WEIGHT_DECAY"),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "SOLVER.AMP."),
    *("SOLVER.SYNC_GRADIENTS", "SOLVER.CHECKPOINT_", "SOLVER.LOG_PERIOD"),
    When(("SOLVER.STEPS", "SOLVER.GAMMA"), "SOLVER.SCHEDULE", "steps"),
]
CLIP = (
    *("MODEL.CLIP.NAME", "MODEL.CLIP.WEIGHTS", "MODEL.CLIP.DENSE", "MODEL.CLIP.DENSE_"),
    *("MODEL.CLIP.ATTENTION", "MODEL.CLIP.REGIONS_SEE_CLASS_TOKEN"),
    *("MODEL.CLIP.CHECKPOINTING", "MODEL.CLIP.COMPILE", "MODEL.CLIP.BACKBONE", "TEST.PRECISION"),
)
REGIONS = (
    *("INPUT.REGIONS.STUDENT_SIZE", "TEST.REGIONS.SIZES", "TEST.REGIONS.READ"),
    *("TEST.REGIONS.MASK_RESIZE", "TEST.REGIONS.TEMPLATES", "TEST.REGIONS.GROUPING"),
)
PIXELS = (
    *("INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"),
    *("TEST.TRAIN_VOCABULARY", "TEST.MIOU_RULE", "TEST.NUMBERS.", "TEST.LABEL_FILES"),
    *("TEST.AUG.ENABLED", "TEST.AUG.FLIP"),
    "TEST.EXAMPLES.",
)
LABELS = (
    *PIXELS,
    *("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "MODEL.SEM_SEG_HEAD.TRAIN_CLASS_JSON"),
    *("MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON", "TEST.BACKGROUND."),
)
FINETUNED = ("MODEL.CLIP.TRAINABLE_BLOCKS", "MODEL.CLIP.LOW_RANK")
BACKBONE = ("MODEL.BACKBONE.", "MODEL.RESNETS.")
MIXED = ("SOLVER.MIX_WITH_START",)
EXPONENTS = ("MODEL.FUSION.ALPHA", "MODEL.FUSION.BETA", "MODEL.FUSION.MODE")
HEAD = "MODEL.SEM_SEG_HEAD."
GENERATOR, FORMER = "MODEL.MASK_GENERATOR.", "MODEL.MASK_FORMER."

READS: dict[str, tuple[str | When, ...]] = {
    "RegionReader": (*CLIP, *REGIONS),
    "ImageClassifier": (*CLIP, "TEST.REGIONS.SIZES", "TEST.REGIONS.TEMPLATES"),
    "CLIPSelf": (
        *(*CLIP, *REGIONS, "MODEL.CLIP.TRAINABLE_BLOCKS", "MODEL.CLIPSELF.", "INPUT.REGIONS."),
        "TEST.REGIONS.ALPHA_SWEEP",
    ),
    "ZeroShotSegmenter": (*CLIP, *LABELS, "MODEL.ZERO_SHOT."),
    "CATSeg": (
        *(*CLIP, *FINETUNED, *LABELS, *MIXED, "MODEL.CLIP.VISUAL_INIT"),
        "MODEL.PRESERVATION.",
        *("SOLVER.WEIGHT_DECAY_NORM", "SOLVER.CLIP_MULTIPLIER"),
        *("MODEL.CAT_SEG.", "MODEL.SEM_SEG_HEAD.", "MODEL.PROMPT_ENSEMBLE_TYPE"),
        *("MODEL.MASK_FORMER.SIZE_DIVISIBILITY", "INPUT.MIN_SIZE_", "INPUT.MAX_SIZE_"),
        *("VIS_PERIOD", "INPUT.CROP.", "INPUT.COLOR_AUG_SSD", "INPUT.SIZE_DIVISIBILITY"),
        "TEST.SLIDING_WINDOW",
        When(
            (*BACKBONE, "MODEL.SWIN.", "SOLVER.BACKBONE_MULTIPLIER"),
            "MODEL.CAT_SEG.GUIDANCE",
            "backbone",
        ),
    ),
    "OpenPanoptic": (
        *(*CLIP, *PIXELS, *MIXED, "VIS_PERIOD"),
        *(f"{GENERATOR}{name}" for name in ("KIND", "SOURCE", "VARIANT", "PADDING", "OUTPUTS")),
        *(f"{FORMER}{name}" for name in ("NUM_OBJECT_QUERIES", "DIM_FEEDFORWARD", "DEC_LAYERS")),
        *(f"{FORMER}{name}" for name in ("CLASS_WEIGHT", "MASK_WEIGHT", "DICE_WEIGHT")),
        *(f"{FORMER}{name}" for name in ("NO_OBJECT_WEIGHT", "TRAIN_NUM_POINTS", "TEST.")),
        f"{FORMER}SIZE_DIVISIBILITY",
        When(
            (
                *(f"{GENERATOR}ENCODER_", f"{GENERATOR}POINTS", f"{FORMER}HIDDEN_DIM"),
                *(f"{FORMER}NHEADS", "SOLVER.WEIGHT_DECAY_NORM"),
            ),
            f"{GENERATOR}KIND",
            "mask2former",
        ),
        When(("MODEL.PLAIN_DECODER.",), f"{GENERATOR}KIND", "plain"),
        *("MODEL.CLIP_BRANCH.", "MODEL.FUSION.", "TEST.PANOPTIC.", "TEST.DETECTIONS_PER_IMAGE"),
        *("INPUT.IMAGE_SIZE", "INPUT.MIN_SCALE", "INPUT.MAX_SCALE", "INPUT.KEEP_EMPTY_SEGMENTS"),
        When(("MODEL.PYRAMID.",), "MODEL.MASK_GENERATOR.SOURCE", "pyramid"),
        When(("MODEL.DIFFUSION.",), "MODEL.MASK_GENERATOR.SOURCE", "diffusion"),
    ),
    "FViT": (
        *(*CLIP, *EXPONENTS, "MODEL.FVIT.", "INPUT.FORMAT", "INPUT.DETECTION.", "TEST.DETECTION."),
        *(*MIXED, "TEST.DETECTIONS_PER_IMAGE", "TEST.TRAIN_VOCABULARY", "VIS_PERIOD"),
        When((*FINETUNED, "SOLVER.CLIP_MULTIPLIER"), "MODEL.FVIT.TRAIN_CLIP", True),
        "MODEL.PRESERVATION.WEIGHT",
    ),
    "StockRPN": (
        *("MODEL.STOCK_RPN.", *BACKBONE, "MODEL.FPN.", "MODEL.PROPOSAL_GENERATOR."),
        *("MODEL.ANCHOR_GENERATOR.", "MODEL.RPN.", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"),
        *("INPUT.FORMAT", "INPUT.DETECTION.", "SOLVER.BACKBONE_MULTIPLIER"),
        "SOLVER.WEIGHT_DECAY_NORM",
    ),
}

# What happens in place of keys of Detectron2 that nothing here reads.
_INSTEAD: dict[str, tuple[str, ...]] = {
    "files of older versions are not converted": ("VERSION",),
    "cuDNN's choice of kernels is left to PyTorch": ("CUDNN_BENCHMARK",),
    "models find their own regions": ("MODEL.LOAD_PROPOSALS",),
    "images are normalised as their CLIP or guidance backbone was trained": ("MODEL.PIXEL_",),
    "MODEL.META_ARCHITECTURE decides": (f"{HEAD}NAME",),
    "MODEL.CAT_SEG.GUIDANCE decides which features guide": (f"{HEAD}IN_FEATURES",),
    "the vocabulary decides, that of the data set or TRAIN_CLASS_JSON and TEST_CLASS_JSON": (
        f"{HEAD}NUM_CLASSES",
    ),
    "DECODER_DIMS are the channels of the decoder": (f"{HEAD}CONVS_DIM",),
    "CAT-Seg's decoder does not read this key of Detectron2's SemSegFPNHead": (
        *(f"{HEAD}COMMON_STRIDE", f"{HEAD}NORM"),
    ),
    "there is one loss, whose weight is 1": (f"{HEAD}LOSS_WEIGHT",),
    "the task decides whether training images are flipped": ("INPUT.RANDOM_FLIP",),
    "masks are bitmaps": ("INPUT.MASK_FORMAT",),
    "distillation reads the proposals of its data sets": (
        *("DATASETS.PROPOSAL_FILES_", "DATASETS.PRECOMPUTED_PROPOSAL_"),
    ),
    "images of a batch are cut to one size": ("DATALOADER.ASPECT_RATIO_GROUPING",),
    "each epoch takes the images once, in an order drawn from SEED": (
        *("DATALOADER.SAMPLER_TRAIN", "DATALOADER.REPEAT_"),
    ),
    "the data set decides which images are trained on": ("DATALOADER.FILTER_EMPTY_ANNOTATIONS",),
    "the optimiser is AdamW with SOLVER.BETAS": ("SOLVER.MOMENTUM", "SOLVER.NESTEROV"),
    "biases learn at the rate of the other parameters, and their decay is the method's": (
        *("SOLVER.BIAS_LR_FACTOR", "SOLVER.WEIGHT_DECAY_BIAS"),
    ),
    "gradients are scaled down where their Euclidean norm over all parameters exceeds CLIP_VALUE": (
        *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "SOLVER.CLIP_GRADIENTS.NORM_TYPE"),
    ),
    "the cosine ends at 0": ("SOLVER.BASE_LR_END",),
    "the warm-up is linear": ("SOLVER.WARMUP_METHOD",),
    "SOLVER.SCHEDULE, WARMUP_ITERS and WARMUP_FACTOR describe the learning rate": (
        *("SOLVER.NUM_DECAYS", "SOLVER.RESCALE_INTERVAL"),
    ),
    "IMS_PER_BATCH counts the images of all processes, and nothing is rescaled": (
        "SOLVER.REFERENCE_WORLD_SIZE",
    ),
    "results are written to results.json and not judged": ("TEST.EXPECTED_RESULTS",),
    "images are evaluated at one size, TEST.AUG.ENABLED averages an image and its mirrored version": (
        *("TEST.AUG.MIN_SIZES", "TEST.AUG.MAX_SIZE"),
    ),
    "the statistics of batch norms are not measured again": ("TEST.PRECISE_BN.",),
}
INSTEAD = {name: sentence for sentence, names in _INSTEAD.items() for name in names}

# Values of CAT-Seg's published files that differ from the default, and pass.
PUBLISHED: dict[str, object] = {
    "CUDNN_BENCHMARK": True,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.SEM_SEG_HEAD.NAME": "CATSegHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 171,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "TEST.AUG.MIN_SIZES": [256, 384, 512, 640, 768, 896],
    "TEST.AUG.MAX_SIZE": 3584,
}
# Those of its files name a guidance backbone also where CLIP's own blocks guide.
GUIDANCE = (*BACKBONE, "MODEL.SWIN.", "SOLVER.BACKBONE_MULTIPLIER")

# Models whose keys count as decisive for all: those of a StockRPN are Detectron2's own.
OWN_KEYS = [model for model in READS if model != "StockRPN"]


def covers(name: str, key: str) -> bool:
    """Whether a name of a key, or of the beginning of several, stands for a key."""
    return key.startswith(name) if name[-1] in "._" else key == name


def backbone_reads(backbone: str, key: str) -> bool:
    """Whether a key of `CLIPBackbone` has an effect on an entry of Detectron2's BACKBONE_REGISTRY: on itself, and on
    one whose attribute `reads` names the key."""
    if backbone == CLIP_BACKBONE:
        return True
    from detectron2.modeling import BACKBONE_REGISTRY  # takes a second

    reads = getattr(dict(BACKBONE_REGISTRY).get(backbone), "reads", ())
    return any(covers(name, key) for name in reads)


@functools.cache
def is_read(key: str, architecture: str) -> bool:
    """Whether a key decides anything in this project, with this model or with another one.

    The keys of Detectron2's detectors count for a `StockRPN` alone, and those of a model of another project all.
    """
    if architecture not in READS and key.startswith(("MODEL.", "INPUT.")):
        return True
    read = any(covers(name, key) for name in _names_of(architecture))
    return read and _instead(key, architecture) is None


@functools.cache
def _names_of(architecture: str) -> frozenset[str]:
    readers = [READS[model] for model in READS if model in (architecture, *OWN_KEYS)]
    # A guest's backbone reads all keys of CLIP.
    return frozenset(_names([*ALL, "MODEL.CLIP.", *itertools.chain(*readers)]))


def why_unread(key: str, values: Mapping[str, object], model: str | None) -> str | None:
    """Why a key has no effect, for a message; None if it is read, or the model is of a project that says nothing.

    Args:
        key: full name.
        values: value of every key.
        model: ``MODEL.META_ARCHITECTURE``; None if nothing names one.
    """
    if instead := _instead(key, model or OWN_KEYS[0]):
        return instead
    if model not in READS:
        return None
    others = [other for other in READS if any(covers(name, key) for name in _names(READS[other]))]
    reason = f"{model} does not read it" + (f", it is for {' and '.join(others)}" if others else "")
    for entry in (*ALL, *READS[model]):
        names = entry.names if isinstance(entry, When) else (entry,)
        if not any(covers(name, key) for name in names):
            continue
        if not isinstance(entry, When) or values[entry.key] == entry.value:
            return None
        reason = f"{model} reads it with {entry.key} {entry.value} alone"
    return reason


def _names(entries: Iterable[str | When]) -> Iterator[str]:
    for entry in entries:
        yield from entry.names if isinstance(entry, When) else (entry,)


def _instead(key: str, model: str) -> str | None:
    """What happens in place of a key that nothing here reads; None of one that this model reads all the same."""
    if model not in READS and key.startswith(("MODEL.", "INPUT.")):
        return None
    if model == "StockRPN" and any(covers(name, key) for name in _names(READS[model])):
        return None
    return next((text for name, text in INSTEAD.items() if covers(name, key)), None)
