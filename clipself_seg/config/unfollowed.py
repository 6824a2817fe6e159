"""Keys of configuration files that have no effect here, and the values of them that are accepted all the same.

Detectron2's defaults pass, and so do the values of CAT-Seg's published files, which name more keys
than its code reads. Any other value would be silently without effect, and is refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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

# DeepLab's keys, which nothing reads: the config.yaml of an earlier run names them with these values.
RETIRED: dict[str, Any] = {
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 256,
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": [6, 12, 18],
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": 0.1,
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": "hard_pixel_mining",
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [48],
    "MODEL.SEM_SEG_HEAD.PROJECT_FEATURES": ["res2"],
    "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV": False,
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
