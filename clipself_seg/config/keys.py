"""The keys of CLIP, distillation and region recognition, each with the sentence that explains it.

Of Detectron2's own keys these are used: ``MODEL.META_ARCHITECTURE``, ``MODEL.DEVICE``,
``DATASETS.TRAIN`` and ``.TEST``, ``DATALOADER.NUM_WORKERS``, ``TEST.EVAL_PERIOD``, ``SEED``,
``OUTPUT_DIR``, and of ``SOLVER``: ``IMS_PER_BATCH`` (images of a step over all processes),
``BASE_LR``, ``WARMUP_ITERS``, ``MAX_ITER``, ``WEIGHT_DECAY``, ``CHECKPOINT_PERIOD``,
``AMP.ENABLED``, ``CLIP_GRADIENTS.ENABLED`` and ``.CLIP_VALUE`` (norm over all parameters).
`reads` has those of each model.

"Code" and "paper" in the comments are the official CLIPSelf code and arXiv 2310.01403; where they
differ, the default is the code, whose numbers the paper prints, and D1 to D5 name the difference.
"""

from __future__ import annotations

import functools
import pickle

from detectron2.config import CfgNode, get_cfg

from clipself_seg.checkpoints.dense_feature import KINDS
from clipself_seg.config.cat_seg import add_cat_seg_keys
from clipself_seg.config.detection import add_detection_keys
from clipself_seg.config.panoptic import add_panoptic_keys
from clipself_seg.config.zero_shot import add_zero_shot_keys


def add_numbers_keys(cfg: CfgNode) -> None:
    """Add ``TEST.NUMBERS`` to `cfg`. They are of models that label pixels."""
    numbers = cfg.TEST.NUMBERS = CfgNode()
    # IoU of the pixels near the edge of their class alone (Boundary IoU).
    numbers.BOUNDARY = False


CLIP_BACKBONE = "CLIPBackbone"  # MODEL.CLIP.BACKBONE of the project's own entry
# Keys beside MODEL.CLIP that it alone reads: files of weights of a CLIP, and what is special to its ViTs and pixels.
OF_CLIP_BACKBONE = (
    "MODEL.CAT_SEG.RESIDUAL",
    "MODEL.CLIPSELF.STUDENT_WEIGHTS",
    "MODEL.CLIP_BRANCH.NAME",
    "MODEL.CLIP_BRANCH.WEIGHTS",
    "MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED",
)
# What a key may be, where that is a short list.
CHOICES: dict[str, tuple[str, ...]] = {
    "INPUT.REGIONS.SOURCE": ("grid", "proposals"),
    "INPUT.REGIONS.GRID_PAIRS": ("aspect", "all"),
    "MODEL.CLIP.ATTENTION": ("none", "sclip", "clearclip", "naclip", "kk", "qq_kk"),
    "MODEL.CLIP.DENSE": KINDS,
    "MODEL.CLIPSELF.TARGET": ("crops", "texts", "captions"),
    "MODEL.CLIPSELF.TEXTS.LOSS": ("bce", "softmax", "regionclip"),
    "MODEL.CLIPSELF.LOSS_AVERAGE": ("regions", "images"),
    "MODEL.CLIPSELF.CORRELATION.CONTEXT": ("q", "qk"),
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "TEST.PRECISION": ("float32", "bfloat16", "float16"),
    "TEST.REGIONS.MASK_RESIZE": ("reference", "exact"),
    "TEST.REGIONS.TEMPLATES": ("vild63", "openai80", "imagenet80", "tcl9", "single"),
}
# Those of them to which a module of --import adds names of its own, see `clipself_seg.extend`.
OPEN = ("MODEL.CLIP.ATTENTION",)
# Keys that such modules register -> default.
FURTHER: dict[str, object] = {}
READOUTS = ("boxes", "masks", "crops", "attention_boxes", "attention_masks")
WHOLE = "images"  # the readout of data sets of whole images, which have no regions
# What a list may hold, at least one of which it has to name.
LISTS: dict[str, tuple[str, ...]] = {
    "TEST.REGIONS.READ": READOUTS,
    "TEST.PANOPTIC.ROWS": ("clip", "generator", "fused"),
    "TEST.PANOPTIC.TASKS": ("panoptic", "instances", "semantic"),
    "TEST.DETECTION.TASKS": ("boxes", "masks"),
}


def default_config() -> CfgNode:
    """Detectron2's configuration with the project's keys, and its defaults of Detectron2's keys that differ here."""
    cfg: CfgNode = pickle.loads(_defaults())
    for key, default in FURTHER.items():
        set_key(cfg, key, default)
    return cfg


@functools.cache
def _defaults() -> bytes:
    """Those of no module of --import, pickled: every configuration begins as a copy, and copying nodes is slow."""
    cfg = get_cfg()
    # A class of clipself_seg.models: "CLIPSelf" trains, "RegionReader" evaluates a CLIP as it is.
    cfg.MODEL.META_ARCHITECTURE = "CLIPSelf"
    add_backbone_keys(cfg)
    # Entry of Detectron2's BACKBONE_REGISTRY that is the CLIP of every model: CLIPBackbone reads the other keys of
    # MODEL.CLIP; one of a module that --import names has its own weights (docs/backbone.md).
    cfg.MODEL.CLIP.BACKBONE = CLIP_BACKBONE
    _add_distillation(cfg)
    _add_preservation(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_test(cfg)
    add_cat_seg_keys(cfg)
    add_zero_shot_keys(cfg)
    add_panoptic_keys(cfg)
    add_detection_keys(cfg)
    add_numbers_keys(cfg)
    return pickle.dumps(cfg)


def set_key(cfg: CfgNode, key: str, value: object) -> None:
    """Set a key, such as "MODEL.CLIP.NAME", and make the sections around it that are missing."""
    *sections, name = key.split(".")
    for section in sections:
        if section not in cfg:
            setattr(cfg, section, CfgNode())
        cfg = cfg[section]
    setattr(cfg, name, value)


def add_backbone_keys(cfg: CfgNode) -> None:
    """Add the keys of `clip.backbone.CLIPBackbone` to `cfg`."""
    cfg.MODEL.CLIP = CfgNode()
    # open_clip's model name, such as EVA02-B-16 or ViT-B-16-quickgelu, or ViT-Mini-8 of the mini
    # world.
    cfg.MODEL.CLIP.NAME = "ViT-Mini-8"
    # A checkpoint file, an open_clip tag, or a tag of the shipped weights; "" is random weights
    # from SEED.
    cfg.MODEL.CLIP.WEIGHTS = "mini"
    # How many of the last transformer blocks (stages of a ResNet) train; -1 is all of them. Paper,
    # Table 1b. Stem, positions, final norm and projection never do in a distillation. CAT-Seg and F-ViT train, of what
    # CLIP_FINETUNE and TRAIN_CLIP say, that of these blocks alone; for -1 text tower, positions and stem too.
    cfg.MODEL.CLIP.TRAINABLE_BLOCKS = -1
    # Rank of the updates that the matrices of these blocks train by (LoRA), while all else of the image tower stays; 0
    # trains the weights themselves. Files hold the sums, under the ordinary names.
    cfg.MODEL.CLIP.LOW_RANK = 0
    # What the dense features of a ViT are. "token": the last block for each token alone, residual and MLP kept
    # (CLIPSelf). "value": its value and output projection, without residual and MLP (MaskCLIP). "multi_value": the sum
    # of these of the last DENSE_BLOCKS blocks; "gated_multi_value": with a factor for each head and token, one linear
    # map for all blocks that trains and begins at 1 (both DenseRC). Files of weights say which one they were distilled
    # for, "token" if they say nothing.
    cfg.MODEL.CLIP.DENSE = "token"
    # Number of last blocks whose values are added; DenseRC has 3.
    cfg.MODEL.CLIP.DENSE_BLOCKS = 3
    # Read weights that were distilled for another dense feature, or do not say that they were never distilled, all the
    # same.
    cfg.MODEL.CLIP.DENSE_OVERRIDE = False
    # Attention of the last block that needs no training, in evaluation alone, of original weights and DENSE "token":
    # "none" is what DENSE says; "sclip", "clearclip" (queries with queries), "naclip" (keys with keys, near ones
    # first), "kk" (keys with keys), "qq_kk" (the sum of both).
    cfg.MODEL.CLIP.ATTENTION = "none"
    # Whether a region's embedding by masked attention reads the class token beside the region's cells: of PE-Core
    # alone, whose image embedding does. Other ViTs' mask tokens always do.
    cfg.MODEL.CLIP.REGIONS_SEE_CLASS_TOKEN = False
    # Recompute whole blocks in the backward pass, matrix products too: less memory, about a third more
    # time, equal gradients.
    cfg.MODEL.CLIP.CHECKPOINTING = False
    # Compile the blocks of a ViT, and those of CAT-Seg's aggregator, by torch.compile, in the first steps and again for
    # images of another kind of size: a minute or two, for less time a step. Numbers change in their last digits. A CPU
    # needs a C++ compiler for it.
    cfg.MODEL.CLIP.COMPILE = False
    # What MODEL.BACKBONE.NAME: CLIPBackbone gives to a head: "dense" and any of "block0",
    # "block1", ...
    cfg.MODEL.CLIP.OUT_FEATURES = ("dense",)


def _add_preservation(cfg: CfgNode) -> None:
    preservation = cfg.MODEL.PRESERVATION = CfgNode()
    # Weight of preservation in the fine-tuning of a CAT-Seg or an F-ViT: a frozen copy of MODEL.WEIGHTS sees the same
    # images, and what it says of things that are not trained stays: CAT-Seg's scores of WORDS, F-ViT's proposals and
    # their embeddings. 0 is none.
    preservation.WEIGHT = 0.0
    # Words of CAT-Seg's preservation, none of which needs labels: a built-in vocabulary, words or a file, as --words
    # takes them. Those of the training vocabulary are left out, and each step takes SAMPLE of the others.
    preservation.WORDS = "ade20k_847"
    preservation.SAMPLE = 16


def _add_distillation(cfg: CfgNode) -> None:
    cfg.MODEL.CLIPSELF = CfgNode()
    # What the student learns from: "crops" are the teacher's embeddings of the regions' crops, CLIPSelf itself;
    # "texts" are nouns, which the data set has for its boxes (paper, Table 7);
    # "captions" of whole images, by CLIP's own contrastive loss, are the paper's Table 1c, #5*.
    cfg.MODEL.CLIPSELF.TARGET = "crops"
    cfg.MODEL.CLIPSELF.TEXTS = CfgNode()
    # "bce" is the code's: a sigmoid for each noun of the process's boxes and for others drawn at random; "softmax"
    # over all nouns; "regionclip" are RegionCLIP's three losses, which the paper says it follows.
    cfg.MODEL.CLIPSELF.TEXTS.LOSS = "bce"
    # Where the student starts, if not as the teacher: a distilled checkpoint of the same CLIP, to go on with it.
    cfg.MODEL.CLIPSELF.STUDENT_WEIGHTS = ""
    # D4: fraction of the student in the weights that are evaluated and written; the rest is the original
    # CLIP. The code has 0.7 for B/16 and 0.95 for L/14; the paper mentions none, which is 1.
    cfg.MODEL.CLIPSELF.ALPHA = 0.7
    # D3: "regions" averages the loss over all regions of the batch (code), "images" first within
    # each image (paper).
    cfg.MODEL.CLIPSELF.LOSS_AVERAGE = "regions"
    _add_objectives(cfg)


def _add_objectives(cfg: CfgNode) -> None:
    cfg.MODEL.CLIPSELF.OBJECTIVES = CfgNode()
    # Weights of what TARGET crops trains for, of which any may be together; 0 leaves one out. docs/distillation.md has
    # their formulas (Objectives beside crops). The first is CLIPSelf itself: regions of dense features against crops.
    cfg.MODEL.CLIPSELF.OBJECTIVES.CROPS = 1.0
    # DeCLIP's context: queries of the last block resemble each other as the tokens of CORRELATION.TEACHER do.
    cfg.MODEL.CLIPSELF.OBJECTIVES.CONTEXT = 0.0
    # DenseRC's coherence: dense features resemble each other as the tokens of CORRELATION.TEACHER do.
    cfg.MODEL.CLIPSELF.OBJECTIVES.COHERENCE = 0.0
    # R-SC's spatial correlation distillation: each token is as near to the others as in CORRELATION.TEACHER.
    cfg.MODEL.CLIPSELF.OBJECTIVES.SPATIAL = 0.0
    # Preservation: the student's own embedding of the whole image, at the CLIP's own size, is the teacher's.
    cfg.MODEL.CLIPSELF.OBJECTIVES.WHOLE_IMAGES = 0.0
    # Preservation: the student's own embeddings of the crops are the teacher's.
    cfg.MODEL.CLIPSELF.OBJECTIVES.OWN_CROPS = 0.0
    cfg.MODEL.CLIPSELF.CORRELATION = CfgNode()
    # Whose tokens show how places of an image resemble each other: "none"; "original", the dense features of the
    # CLIP of MODEL.CLIP.WEIGHTS; or a backbone of timm by name, such as vit_base_patch14_dinov2 or
    # vit_pe_spatial_base_patch16_512, whose weights timm fetches.
    cfg.MODEL.CLIPSELF.CORRELATION.TEACHER = "none"
    # What OBJECTIVES.CONTEXT compares: "q", queries, or "qk", the mean of the similarities of queries and of keys.
    cfg.MODEL.CLIPSELF.CORRELATION.CONTEXT = "q"


def _add_input(cfg: CfgNode) -> None:
    # Your own data: a YAML file, a folder or a COCO JSON (docs/own_data.md), whose data sets take the place of TRAIN
    # and TEST where those are not set by hand. --data is this key.
    cfg.DATASETS.DATA = ""
    # Largest number of pixels of an image file: one whose header states more is refused before it is
    # decoded, into 3 bytes a pixel or more. A photograph of 100 megapixels passes.
    cfg.INPUT.MAX_PIXELS = 128_000_000
    cfg.INPUT.REGIONS = CfgNode()
    # "grid" distils patches of a random grid, "proposals" the boxes that the data set brings.
    cfg.INPUT.REGIONS.SOURCE = "grid"
    # Side in pixels of the student's square input; the longest side of an image is resized to it.
    # Paper, Table 1c.
    cfg.INPUT.REGIONS.STUDENT_SIZE = 1024
    # Largest number of rows and of columns of the grid, M. Paper, Table 1a.
    cfg.INPUT.REGIONS.MAX_SPLIT = 6
    # D1: "aspect" keeps rows and columns within a factor of two, 24 pairs for M = 6 (code); "all"
    # draws any pair (paper).
    cfg.INPUT.REGIONS.GRID_PAIRS = "aspect"
    # D2: at most so many random regions of an image (code: 20); 0 takes all (paper). Of boxes with nouns
    # ("texts") the first ones.
    cfg.INPUT.REGIONS.MAX_REGIONS = 20
    # Enlargement of the teacher's crop about the centre of the region: 1 for grids, 1.5 for
    # proposals in the code.
    cfg.INPUT.REGIONS.CROP_SCALE = 1.0


def _add_solver(cfg: CfgNode) -> None:
    # Decay of AdamW's two moments. The code has (0.9, 0.999) for EVA and (0.9, 0.98) for OpenAI.
    cfg.SOLVER.BETAS = (0.9, 0.999)
    # AdamW's epsilon. The code has 1e-8 for EVA and 1e-6 for OpenAI.
    cfg.SOLVER.EPS = 1e-8
    # Learning rate after the warm-up of WARMUP_ITERS steps; it then falls to 0 as a cosine.
    cfg.SOLVER.BASE_LR = 1e-5
    # Decoupled weight decay of matrices; biases, norms and other vectors have none.
    cfg.SOLVER.WEIGHT_DECAY = 0.1
    # D5: average the gradients over the processes. False is what the code does: every process
    # trains its own replica on its own part of the batch, and the first one's is evaluated and
    # saved.
    cfg.SOLVER.SYNC_GRADIENTS = True
    # Precision of training under SOLVER.AMP.ENABLED: "float16" with loss scaling (code), or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Fractions of the trained weights, in [0, 1]: after the training the evaluation is repeated with start + f * (end -
    # start) for 0, 1 and each of them, where the start is MODEL.WEIGHTS, and the best of them is named and written.
    cfg.SOLVER.MIX_WITH_START = ()
    # How many of the newest checkpoints stay on disk.
    cfg.SOLVER.CHECKPOINT_KEEP = 2
    # Steps between two lines of the log.
    cfg.SOLVER.LOG_PERIOD = 20
    # Seed of random weights, of the order of the images, and of their grids.
    cfg.SEED = 0


def _add_test(cfg: CfgNode) -> None:
    # Of products and convolutions in evaluation and prediction: "float32", "bfloat16", or "float16" on a GPU. Softmax,
    # norms, fusion and merging stay in float32. SOLVER.AMP is of training alone. Official detection has float16.
    cfg.TEST.PRECISION = "float32"
    # Detectron2's keys: whether the scores of an image and of its mirrored version (AUG.FLIP) are averaged. Of panoptic
    # segmentation CLIP's scores of masks are, for masks of two passes are not the same ones.
    cfg.TEST.AUG.ENABLED = False
    # Of models that label pixels: for each of DATASETS.TEST a file of other names for its classes, lines ID:NAME,NAME
    # as in FC-CLIP's lists (*_with_prompt_eng.txt), or "" for its own; () is "" for all.
    cfg.TEST.LABEL_FILES = ()
    cfg.TEST.EXAMPLES = CfgNode()
    # Regions of images that the evaluation gives for each unseen class (docs/predict.md, "Examples"), drawn by SEED; 0
    # for words alone.
    cfg.TEST.EXAMPLES.NUMBER = 0
    # For each of DATASETS.TEST the data set with label maps that they are drawn from, such as mini_train_sem_seg.
    cfg.TEST.EXAMPLES.DATASETS = ()
    # Weight of the examples beside the word, in (0, 1]; 1 leaves the word out.
    cfg.TEST.EXAMPLES.WEIGHT = 0.75
    cfg.TEST.REGIONS = CfgNode()
    # Sides in pixels of the square input of region recognition; () is INPUT.REGIONS.STUDENT_SIZE, and of whole images
    # the CLIP's own.
    # Paper, Fig. 3.
    cfg.TEST.REGIONS.SIZES = ()
    # Readouts, which make embeddings of regions: "boxes" and "masks" from the dense features, "crops" from image
    # crops (1.5x for things), "attention_boxes" and "attention_masks" by masked attention. Paper,
    # Tables 1, 2, A1, A2.
    cfg.TEST.REGIONS.READ = ("boxes", "masks", "crops")
    # How a mask reaches the token grid: "reference" as in the published numbers, "exact" by the
    # covered area.
    cfg.TEST.REGIONS.MASK_RESIZE = "reference"
    # Sentences around a class name: ViLD's 63; OpenAI's 80, as imagenet80 around names as they stand, "/" and capitals
    # included, which is how whole images are classified; nine; or one.
    cfg.TEST.REGIONS.TEMPLATES = "vild63"
    # Measure too how the dense features group the places of an image, without any class name: "grouping.purity".
    cfg.TEST.REGIONS.GROUPING = False
    # Further fractions of the student, as MODEL.CLIPSELF.ALPHA, which is evaluated anyway: with each of them the
    # mixture with the original is evaluated too, and its numbers are called "alpha_0.7-boxes.thing.top1".
    cfg.TEST.REGIONS.ALPHA_SWEEP = ()
