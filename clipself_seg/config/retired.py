"""Accepts keys that no longer exist, at the value that the code now always uses.

So the config.yaml of an earlier run, a folder of save_pretrained, and CAT-Seg's own files load as they are. Old names
of configurations are another thing: `yaml_files.py` resolves them.
"""

from __future__ import annotations

from detectron2.config import CfgNode

from clipself_seg.errors import InputError, shown
from clipself_seg.yaml_files import lists_for_tuples

HEAD = "MODEL.SEM_SEG_HEAD."
# Keys of this project, with the constant that each became.
CONSTANTS: dict[str, object] = {
    "MODEL.CLIPSELF.LOSS_WEIGHT": 1.0,
    "MODEL.CLIPSELF.CORRELATION.TEMPERATURE": 0.2,
    "MODEL.CLIPSELF.TEXTS.NEGATIVES": 100,
    "MODEL.CLIPSELF.TEXTS.TEMPLATES": "vild63",
    "MODEL.CLIP_BRANCH.ASPECT": "",
    "MODEL.CLIP_BRANCH.BINARISE": "",
    "MODEL.CLIP_BRANCH.INTERPOLATION": "",
    "MODEL.CLIP_BRANCH.ANTIALIAS": -1,
    "MODEL.DIFFUSION.ANTIALIAS": False,
    "MODEL.DIFFUSION.NOISE_SEED": 42,
    "MODEL.FVIT.PROPOSALS_IOU": 0.7,
    "MODEL.FVIT.SYNONYMS": "first",
    "MODEL.FVIT.TEMPERATURE": 50.0,
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": 3.0,
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": 0.75,
    "MODEL.MASK_GENERATOR.GROUNDING_WEIGHT": 1.0,
    "MODEL.RESNETS.RES4_DILATION": 1,
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 2, 4],
    f"{HEAD}ATTENTION_TYPE": "linear",
    # POOLING_SIZES has a number for each layer.
    f"{HEAD}NUM_LAYERS": 2,
    "MODEL.SWIN.PATCH_SIZE": 4,
    "MODEL.SWIN.MLP_RATIO": 4.0,
    "MODEL.SWIN.QKV_BIAS": True,
    "MODEL.SWIN.QK_SCALE": None,
    "MODEL.SWIN.DROP_RATE": 0.0,
    "MODEL.SWIN.ATTN_DROP_RATE": 0.0,
    "MODEL.SWIN.DROP_PATH_RATE": 0.3,
    "MODEL.SWIN.APE": False,
    "MODEL.SWIN.PATCH_NORM": True,
    "MODEL.SWIN.USE_CHECKPOINT": False,
    "INPUT.CAPTIONS.RESIZE": "warp",
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    "INPUT.REGIONS.MIN_AREA": 64.0,
    "INPUT.REGIONS.MAX_AREA": 1048576.0,
    "SOLVER.WEIGHT_DECAY_EMBED": 0.0,
    "TEST.PANOPTIC.AMP": False,
    "TEST.DETECTION.AMP": False,
    "TEST.WINDOW.SIZE": 384,
    "TEST.WINDOW.OVERLAP": 0.333,
    "TEST.WINDOW.CANVAS": 640,
    # Numbers that no published code defines, and that are no longer measured.
    "TEST.NUMBERS.SIMILARITY": "",
    "TEST.NUMBERS.NAMING": False,
    "TEST.NUMBERS.SYNONYMS": 0,
    "TEST.NUMBERS.GAP": False,
}
# Keys that nothing here ever read, of CAT-Seg's files and of DeepLab, with the values that are published.
NEVER_READ: dict[str, tuple[object, ...]] = {
    f"{HEAD}PROMPT_DEPTH": (0,),
    f"{HEAD}PROMPT_LENGTH": (0,),
    f"{HEAD}TRAIN_CLASS_INDEXES": ("",),
    f"{HEAD}TEST_CLASS_INDEXES": ("",),
    "MODEL.CLIP_PIXEL_MEAN": ([122.7709383, 116.7460125, 104.09373615],),
    "MODEL.CLIP_PIXEL_STD": ([68.5005327, 66.6321579, 70.3231630],),
    "MODEL.PROMPT_ENSEMBLE": (False,),
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": (224, 384),  # of the images that a Swin was trained on
    "DATASETS.VAL_ALL": ([""], ["coco_2017_val_all_stuff_sem_seg"]),
    "INPUT.DATASET_MAPPER_NAME": ("mask_former_semantic",),
    "SOLVER.OPTIMIZER": ("ADAMW",),
    "SOLVER.POLY_LR_POWER": (0.9,),
    "SOLVER.POLY_LR_CONSTANT_ENDING": (0.0,),
    f"{HEAD}ASPP_CHANNELS": (256,),
    f"{HEAD}ASPP_DILATIONS": ([6, 12, 18],),
    f"{HEAD}ASPP_DROPOUT": (0.1,),
    f"{HEAD}LOSS_TYPE": ("hard_pixel_mining",),
    f"{HEAD}PROJECT_CHANNELS": ([48],),
    f"{HEAD}PROJECT_FEATURES": (["res2"],),
    f"{HEAD}USE_DEPTHWISE_SEPARABLE_CONV": (False,),
}
RETIRED = {key: (constant,) for key, constant in CONSTANTS.items()} | NEVER_READ


def is_retired(key: str, value: object, source: str) -> bool:
    """Whether a key is one of those.

    Args:
        key: full name.
        value: as it was read, text from a command line.
        source: what set it, for the message.

    Raises:
        InputError: it is, and has another value than the one that holds now.
    """
    if key not in RETIRED:
        return False
    plain = _decoded(value)
    if plain not in RETIRED[key]:
        now = " or ".join(map(repr, RETIRED[key]))
        hint = "give TEST.PRECISION bfloat16 or float16" if key.endswith(".AMP") else "leave it out"
        raise InputError(
            f"{source}: {key} is no longer a key, its value is {now}, got {shown(value)}; {hint}"
        )
    return True


def _decoded(value: object) -> object:
    """The value that text stands for, with lists for tuples."""
    if isinstance(value, str):
        try:
            value = CfgNode._decode_cfg_value(value)
        except (RecursionError, MemoryError):  # brackets that are nested too deeply
            return value
    return lists_for_tuples(value)
