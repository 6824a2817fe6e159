"""The keys of a run, of CLIP, of distillation and of region recognition, each declared with what is known of it.

Those of the other tasks are in `semantic_keys`, `panoptic_keys` and `detection_keys`; `declare.Key` says what a
declaration may have, and a key of Detectron2 stands here where something reads it.

"Code" and "paper" in the comments are the official CLIPSelf code and arXiv 2310.01403; where they
differ, the default is the code, whose numbers the paper prints, and D1 to D5 name the difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from detectron2.config import CfgNode, get_cfg

from clipself_seg.checkpoints.dense_feature import KINDS
from clipself_seg.config import detection_keys, panoptic_keys, semantic_keys  # noqa: F401
from clipself_seg.config.declare import (
    EVERY,
    HEADS,
    KEYS,
    MODELS,
    NOT_NEGATIVE,
    Check,
    Section,
    at_least,
    each,
    names_of,
    within,
)
from clipself_seg.device import PATTERN, WANTED

ON_REGIONS = ["RegionReader", "CLIPSelf"]
SEMANTIC = ["ZeroShotSegmenter", "CATSeg"]
ON_PIXELS = [*SEMANTIC, "OpenPanoptic"]
READOUTS = ("boxes", "masks", "crops", "attention_boxes", "attention_masks")
WHOLE = "images"  # the readout of data sets of whole images, which have no regions
PRECISIONS = ("float32", "bfloat16", "float16")

top = Section()
# A class of clipself_seg.models: "CLIPSelf" trains, "RegionReader" evaluates a CLIP as it is.
top.key("MODEL.META_ARCHITECTURE", "CLIPSelf")
# Weights that a model starts from, or is: a file of the training of one, or a name of the zoo.
top.stock("MODEL.WEIGHTS", weights=True, folder="model.safetensors")
# What computes; "auto" is the first of cuda, mps and cpu that is here.
top.stock(
    "MODEL.DEVICE",
    Check(WANTED, lambda value: re.fullmatch(PATTERN, value) is not None),
    free=True,
    folder=None,
)
# Seed of random weights, of the order of the images, and of their grids.
top.key(
    "SEED", 0, Check("in [0, 2^32), for every run here is repeatable", lambda v: 0 <= v < 2**32)
)
# Folder of a run.
top.stock("OUTPUT_DIR", free=True)
# Steps between two pictures of what is trained on; 0 is none.
top.stock("VIS_PERIOD", at_least(0), of=["CATSeg", "OpenPanoptic", "FViT"], free=True)

datasets = Section("DATASETS")
# Your own data: a YAML file, a folder or a COCO JSON (docs/own_data.md), whose data sets take the place of TRAIN
# and TEST where those are not set by hand. --data is this key.
datasets.key("DATA", "", Check("a path on this machine", lambda value: "://" not in value))
# Names of data sets that are trained and evaluated on.
datasets.stock("TRAIN", names_of("names of data sets"))
datasets.stock("TEST", names_of("names of data sets"), free=True)
loader = Section("DATALOADER")
# Processes that read images, for each process that computes.
loader.stock("NUM_WORKERS", at_least(0), free=True)

clip = Section("MODEL.CLIP", of=MODELS, clip_backbone=True)
# open_clip's model name, such as EVA02-B-16 or ViT-B-16-quickgelu, or ViT-Mini-8 of the mini
# world.
clip.key("NAME", "ViT-Mini-8")
# A checkpoint file, an open_clip tag, or a tag of the shipped weights; "" is random weights
# from SEED. A resumed run knows the file by the hash of its content.
clip.key("WEIGHTS", "mini", free=True, weights=True, folder="clip.safetensors")
# How many of the last transformer blocks (stages of a ResNet) train; -1 is all of them. Paper,
# Table 1b. Stem, positions, final norm and projection never do in a distillation. CAT-Seg and F-ViT train, of what
# CLIP_FINETUNE and TRAIN_CLIP say, that of these blocks alone; for -1 text tower, positions and stem too.
clip.key(
    "TRAINABLE_BLOCKS",
    -1,
    at_least(-1),
    of=["CLIPSelf", "CATSeg", "FViT"],
    when=("MODEL.FVIT.TRAIN_CLIP", True),
)
# Rank of the updates that the matrices of these blocks train by (LoRA), while all else of the image tower stays; 0
# trains the weights themselves. Files hold the sums, under the ordinary names.
clip.key("LOW_RANK", 0, at_least(0), of=["CATSeg", "FViT"], when=("MODEL.FVIT.TRAIN_CLIP", True))
# What the dense features of a ViT are. "token": the last block for each token alone, residual and MLP kept
# (CLIPSelf). "value": its value and output projection, without residual and MLP (MaskCLIP). "multi_value": the sum
# of these of the last DENSE_BLOCKS blocks; "gated_multi_value": with a factor for each head and token, one linear
# map for all blocks that trains and begins at 1 (both DenseRC). Files of weights say which one they were distilled
# for, "token" if they say nothing.
clip.key("DENSE", "token", choices=KINDS)
# Number of last blocks whose values are added; DenseRC has 3.
clip.key("DENSE_BLOCKS", 3, at_least(1))
# Read weights that were distilled for another dense feature, or do not say that they were never distilled, all the
# same.
clip.key("DENSE_OVERRIDE", False, free=True)
# Attention of the last block that needs no training, in evaluation alone, of original weights and DENSE "token":
# "none" is what DENSE says; "sclip", "clearclip" (queries with queries), "naclip" (keys with keys, near ones
# first), "kk" (keys with keys), "qq_kk" (the sum of both).
clip.key(
    "ATTENTION",
    "none",
    choices=("none", "sclip", "clearclip", "naclip", "kk", "qq_kk"),
    extensible=True,
    free=True,
)
# Recompute blocks in the backward pass, matrix products too, but for what takes long for its size: less memory, about
# an eighth more time, equal gradients.
clip.key("CHECKPOINTING", False, free=True)
# Compile the blocks of a ViT, and those of CAT-Seg's aggregator, by torch.compile, in the first steps and again for
# images of another kind of size: a minute or two, for less time a step. Numbers change in their last digits. A CPU
# needs a C++ compiler for it.
clip.key("COMPILE", False, free=True)
# What MODEL.BACKBONE.NAME: CLIPBackbone gives to a head: "dense" and any of "block0",
# "block1", ...
clip.key("OUT_FEATURES", ("dense",), of=HEADS)
# A distilled CLIP whose image tower the training starts from.
clip.key("VISUAL_INIT", "", of=["CATSeg"], weights=True, folder=None)
# Entry of Detectron2's BACKBONE_REGISTRY that is the CLIP of every model: CLIPBackbone reads the other keys of
# MODEL.CLIP; one of a module that --import names has its own weights (docs/backbone.md).
clip.key("BACKBONE", "CLIPBackbone", clip_backbone=False)

clipself = Section("MODEL.CLIPSELF", of=["CLIPSelf"])
# What the student learns from: "crops" are the teacher's embeddings of the regions' crops, CLIPSelf itself;
# "texts" are nouns, which the data set has for its boxes (paper, Table 7);
# "captions" of whole images, by CLIP's own contrastive loss, are the paper's Table 1c, #5*.
clipself.key("TARGET", "crops", choices=("crops", "texts", "captions"))
# "bce" is the code's: a sigmoid for each noun of the process's boxes and for others drawn at random; "softmax"
# over all nouns; "regionclip" are RegionCLIP's three losses, which the paper says it follows.
clipself.key("TEXTS.LOSS", "bce", choices=("bce", "softmax", "regionclip"))
# Where the student starts, if not as the teacher: a distilled checkpoint of the same CLIP, to go on with it.
clipself.key("STUDENT_WEIGHTS", "", weights=True, folder=None, clip_backbone=True)
# D4: fraction of the student in the weights that are evaluated and written; the rest is the original
# CLIP. The code has 0.7 for B/16 and 0.95 for L/14; the paper mentions none, which is 1.
clipself.key("ALPHA", 0.7, within(0, 1), free=True)
# D3: "regions" averages the loss over all regions of the batch (code), "images" first within
# each image (paper).
clipself.key("LOSS_AVERAGE", "regions", choices=("regions", "images"))
# Whose tokens show how places of an image resemble each other: "none"; "original", the dense features of the
# CLIP of MODEL.CLIP.WEIGHTS; or a backbone of timm by name, such as vit_base_patch14_dinov2 or
# vit_pe_spatial_base_patch16_512, whose weights timm fetches.
clipself.key("CORRELATION.TEACHER", "none")
# What OBJECTIVES.CONTEXT compares: "q", queries, or "qk", the mean of the similarities of queries and of keys.
clipself.key("CORRELATION.CONTEXT", "q", choices=("q", "qk"))

objectives = Section("MODEL.CLIPSELF.OBJECTIVES", of=["CLIPSelf"])
# Weights of what TARGET crops trains for, of which any may be together; 0 leaves one out. docs/objectives.md has
# their formulas. The first is CLIPSelf itself: regions of dense features against crops.
objectives.key("CROPS", 1.0, NOT_NEGATIVE)
# DeCLIP's context: queries of the last block resemble each other as the tokens of CORRELATION.TEACHER do.
objectives.key("CONTEXT", 0.0, NOT_NEGATIVE)
# DenseRC's coherence: dense features resemble each other as the tokens of CORRELATION.TEACHER do.
objectives.key("COHERENCE", 0.0, NOT_NEGATIVE)
# R-SC's spatial correlation distillation: each token is as near to the others as in CORRELATION.TEACHER.
objectives.key("SPATIAL", 0.0, NOT_NEGATIVE)
# Preservation: the student's own embedding of the whole image, at the CLIP's own size, is the teacher's.
objectives.key("WHOLE_IMAGES", 0.0, NOT_NEGATIVE)
# Preservation: the student's own embeddings of the crops are the teacher's.
objectives.key("OWN_CROPS", 0.0, NOT_NEGATIVE)

preservation = Section("MODEL.PRESERVATION", of=["CATSeg"])
# Weight of preservation in the fine-tuning of a CAT-Seg or an F-ViT: a frozen copy of MODEL.WEIGHTS sees the same
# images, and what it says of things that are not trained stays: CAT-Seg's scores of WORDS, F-ViT's proposals and
# their embeddings. 0 is none.
preservation.key("WEIGHT", 0.0, NOT_NEGATIVE, of=["CATSeg", "FViT"])
# Words of CAT-Seg's preservation, none of which needs labels: a built-in vocabulary, words or a file, as --words
# takes them. Those of the training vocabulary are left out, and each step takes SAMPLE of the others.
preservation.key("WORDS", "ade20k_847")
preservation.key("SAMPLE", 16, at_least(1))

image = Section("INPUT", of=ON_PIXELS)
# Largest number of pixels of an image file: one whose header states more is refused before it is
# decoded, into 3 bytes a pixel or more. A photograph of 100 megapixels passes.
image.key("MAX_PIXELS", 128_000_000, at_least(1), of=EVERY, free=True, folder=None)
# Order of the colours; CLIP and the guidance backbones are given RGB.
image.stock("FORMAT", of=[*ON_PIXELS, "FViT"])
# Sides in pixels that an image is resized to in evaluation: the shorter one, unless the longer one would exceed MAX.
image.stock("MIN_SIZE_TEST", at_least(0), folder=(0, 1280))
image.stock("MAX_SIZE_TEST", at_least(1), folder=(1, 2560))

regions = Section("INPUT.REGIONS", of=["CLIPSelf"])
# "grid" distils patches of a random grid, "proposals" the boxes that the data set brings.
regions.key("SOURCE", "grid", choices=("grid", "proposals"))
# Side in pixels of the student's square input; the longest side of an image is resized to it.
# Paper, Table 1c.
regions.key("STUDENT_SIZE", 1024, at_least(1), of=ON_REGIONS)
# Largest number of rows and of columns of the grid, M. Paper, Table 1a.
regions.key("MAX_SPLIT", 6, at_least(1))
# D1: "aspect" keeps rows and columns within a factor of two, 24 pairs for M = 6 (code); "all"
# draws any pair (paper).
regions.key("GRID_PAIRS", "aspect", choices=("aspect", "all"))
# D2: at most so many random regions of an image (code: 20); 0 takes all (paper). Of boxes with nouns
# ("texts") the first ones.
regions.key("MAX_REGIONS", 20, at_least(0))
# Enlargement of the teacher's crop about the centre of the region: 1 for grids, 1.5 for
# proposals in the code.
regions.key("CROP_SCALE", 1.0, Check("greater than 0", lambda value: value > 0))

solver = Section("SOLVER")
# Images of a step over all processes, and number of steps.
solver.stock("IMS_PER_BATCH", at_least(1))
solver.stock("MAX_ITER", at_least(1))
decay = Check("in [0, 1)", lambda value: 0 <= value < 1)
# Decay of AdamW's two moments. The code has (0.9, 0.999) for EVA and (0.9, 0.98) for OpenAI.
solver.key("BETAS", (0.9, 0.999), each(decay, 2))
# AdamW's epsilon. The code has 1e-8 for EVA and 1e-6 for OpenAI.
solver.key("EPS", 1e-8, NOT_NEGATIVE)
# Learning rate after the warm-up of WARMUP_ITERS steps; it then falls to 0 as a cosine.
solver.key("BASE_LR", 1e-5, NOT_NEGATIVE)
solver.stock("WARMUP_ITERS", at_least(0))
# Share of the rate that the warm-up begins with, where the cosine begins with it.
solver.stock("WARMUP_FACTOR")
# "cosine" falls to 0, "steps" multiplies by SOLVER.GAMMA at each of SOLVER.STEPS.
solver.key("SCHEDULE", "cosine", choices=("cosine", "steps"))
solver.stock("STEPS", when=("SOLVER.SCHEDULE", "steps"))
solver.stock("GAMMA", when=("SOLVER.SCHEDULE", "steps"))
# Whether the cosine begins with the warm-up or after it; the name chooses no schedule.
solver.stock(
    "LR_SCHEDULER_NAME",
    Check(
        '"WarmupCosineLR" or "WarmupMultiStepLR", and SOLVER.SCHEDULE chooses which',
        lambda value: value in ("WarmupCosineLR", "WarmupMultiStepLR"),
    ),
)
# Decoupled weight decay of matrices; biases, norms and other vectors have none.
solver.key("WEIGHT_DECAY", 0.1, NOT_NEGATIVE)
# Decay of norms, of the models whose published training has one.
solver.stock(
    "WEIGHT_DECAY_NORM",
    NOT_NEGATIVE,
    of=["CATSeg", "OpenPanoptic"],
    when=("MODEL.MASK_GENERATOR.KIND", "mask2former"),
)
# Learning rates of CLIP and of the guidance backbone, relative to BASE_LR; 0 freezes.
solver.key(
    "CLIP_MULTIPLIER",
    0.01,
    NOT_NEGATIVE,
    of=["CATSeg", "FViT"],
    when=("MODEL.FVIT.TRAIN_CLIP", True),
)
solver.key(
    "BACKBONE_MULTIPLIER",
    0.1,
    NOT_NEGATIVE,
    of=["CATSeg"],
    when=("MODEL.CAT_SEG.GUIDANCE", "backbone"),
)
# Whether gradients are scaled down to the norm CLIP_VALUE over all parameters.
solver.stock("CLIP_GRADIENTS.ENABLED")
solver.stock("CLIP_GRADIENTS.CLIP_VALUE")
# Forward and backward passes that a process's part of a step's batch is divided into. A run that
# lacks memory may go on with more of them.
solver.key("ACCUMULATE", 1, at_least(1), free=True)
# D5: average the gradients over the processes. False is what the code does: every process
# trains its own replica on its own part of the batch, and the first one's is evaluated and
# saved.
solver.key("SYNC_GRADIENTS", True, of=["CLIPSelf"])
# Precision of training under SOLVER.AMP.ENABLED: "float16" with loss scaling (code), or "bfloat16".
solver.stock("AMP.ENABLED")
solver.key("AMP.DTYPE", "float16", choices=("float16", "bfloat16"))
# Fractions of the trained weights, in [0, 1]: after the training the evaluation is repeated with start + f * (end -
# start) for 0, 1 and each of them, where the start is MODEL.WEIGHTS, and the best of them is named and written.
solver.key(
    "MIX_WITH_START", (), each(within(0, 1)), of=["CATSeg", "OpenPanoptic", "FViT"], free=True
)
# Steps between two checkpoints, and how many of the newest stay on disk.
solver.stock("CHECKPOINT_PERIOD", at_least(1), free=True)
solver.key("CHECKPOINT_KEEP", 2, at_least(0), free=True)
# Steps between two lines of the log.
solver.key("LOG_PERIOD", 20, at_least(1), free=True)

test = Section("TEST", of=ON_PIXELS, free=True)
# Of products and convolutions in evaluation and prediction: "float32", "bfloat16", or "float16" on a GPU. Softmax,
# norms, fusion and merging stay in float32. SOLVER.AMP is of training alone. Official detection has float16.
test.key("PRECISION", "float32", choices=PRECISIONS, of=MODELS)
# Steps between two evaluations in a training; 0 is one at its end.
test.stock("EVAL_PERIOD", at_least(0), of=EVERY, folder=None)
# Detections, or instances, of an image.
test.stock("DETECTIONS_PER_IMAGE", at_least(1), of=["OpenPanoptic", "FViT"], folder=(1, 300))
# Whether the scores of an image and of its mirrored version (AUG.FLIP) are averaged, of models that label pixels alone.
test.key("AUG.ENABLED", False, of=SEMANTIC)
test.stock("AUG.FLIP", of=SEMANTIC)
# Of models that label pixels: for each of DATASETS.TEST a file of other names for its classes, lines ID:NAME,NAME
# as in FC-CLIP's lists (*_with_prompt_eng.txt), or "" for its own; () is "" for all.
test.key("LABEL_FILES", (), names_of("paths of files"), folder=None)
# Class list that tells seen from unseen classes; "" is that of the first training data set.
test.key("TRAIN_VOCABULARY", "", of=[*ON_PIXELS, "FViT"], folder="trained.json")
# Mean IoU over classes that are "present" in the ground truth (Detectron2 since July 2022), or
# over the "union" with those predicted.
test.key("MIOU_RULE", "present", choices=("present", "union"))
# Regions of images that the evaluation gives for each unseen class (docs/predict.md, "Examples"), drawn by SEED; 0
# for words alone.
test.key("EXAMPLES.NUMBER", 0, at_least(0))
# For each of DATASETS.TEST the data set with label maps that they are drawn from, such as mini_train_sem_seg.
test.key("EXAMPLES.DATASETS", (), names_of("names of data sets"))
# Weight of the examples beside the word, in (0, 1]; 1 leaves the word out.
test.key("EXAMPLES.WEIGHT", 0.75, Check("in (0, 1]", lambda value: 0 < value <= 1))

reading = Section("TEST.REGIONS", of=ON_REGIONS, free=True)
# Sides in pixels of the square input of region recognition; () is INPUT.REGIONS.STUDENT_SIZE, and of whole images
# the CLIP's own.
# Paper, Fig. 3.
reading.key("SIZES", (), each(at_least(1), whole=True), of=[*ON_REGIONS, "ImageClassifier"])
# Readouts, which make embeddings of regions: "boxes" and "masks" from the dense features, "crops" from image
# crops (1.5x for things), "attention_boxes" and "attention_masks" by masked attention. Paper,
# Tables 1, 2, A1, A2.
reading.key("READ", ("boxes", "masks", "crops"), choices=READOUTS)
# Sentences around a class name: ViLD's 63; OpenAI's 80, as imagenet80 around names as they stand, "/" and capitals
# included, which is how whole images are classified; nine; or one.
reading.key(
    "TEMPLATES",
    "vild63",
    choices=("vild63", "openai80", "imagenet80", "tcl9", "single"),
    of=[*ON_REGIONS, "ImageClassifier"],
)
# Measure too how the dense features group the places of an image, without any class name: "grouping.purity".
reading.key("GROUPING", False)
# Further fractions of the student, as MODEL.CLIPSELF.ALPHA, which is evaluated anyway: with each of them the
# mixture with the original is evaluated too, and its numbers are called "alpha_0.7-boxes.thing.top1".
reading.key("ALPHA_SWEEP", (), each(within(0, 1)), of=["CLIPSelf"])


def default_config() -> CfgNode:
    """Detectron2's configuration with the project's keys, and its defaults of Detectron2's keys that differ here."""
    cfg = get_cfg()
    for declared in KEYS.values():
        set_key(cfg, declared.name, declared.default)
    return cfg.clone()  # with lists of its own


def sections(names: Iterable[str]) -> set[str]:
    """All sections around some keys, such as "MODEL" and "MODEL.CLIP" around "MODEL.CLIP.NAME"."""
    parts = (name.split(".") for name in names)
    return {".".join(words[:end]) for words in parts for end in range(1, len(words))}


def set_key(cfg: CfgNode, name: str, value: object) -> None:
    """Sets a key, such as "MODEL.CLIP.NAME", and makes the sections around it that are missing."""
    *above, last = name.split(".")
    for section in above:
        if section not in cfg:
            setattr(cfg, section, CfgNode())
        cfg = cfg[section]
    setattr(cfg, last, value)
