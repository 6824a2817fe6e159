"""The keys of semantic segmentation: CAT-Seg's, under its own names where it has one so that its YAML files merge, and
those of segmentation without training.

"Official" in the comments is the CVPR 2024 code (arXiv 2303.11797v2); "version 1" the code of the
first arXiv version, the baseline of CLIPSelf's Table 5.
"""

from __future__ import annotations

from clipself_seg.config.declare import POSITIVE, Check, Section, at_least, each, within

CAT_SEG = ["CATSeg"]
# Value of CAT-Seg's MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED -> open_clip's name.
OPENAI_NAMES = {"ViT-B/16": "ViT-B-16-quickgelu", "ViT-L/14@336px": "ViT-L-14-336-quickgelu"}
GUIDED = ("MODEL.CAT_SEG.GUIDANCE", "backbone")  # by a backbone beside CLIP
SIDE = at_least(1)
TWO = each(SIDE, 2, whole=True)
SQUARE = Check(
    f"{TWO.wanted}, and equal, as the images that CLIP is given are square",
    lambda value: TWO.holds(value) and value[0] == value[1],
)
GROUPED = Check(
    f"{TWO.wanted}, and below 32 or multiples of groups of 16 channels",
    lambda value: TWO.holds(value) and all(dim % max(1, dim // 16) == 0 for dim in value),
)

head = Section("MODEL.SEM_SEG_HEAD", of=CAT_SEG)
# Label of the pixels that have none.
head.stock("IGNORE_VALUE", of=["ZeroShotSegmenter", "CATSeg"])
# OpenAI's name of the CLIP, as CAT-Seg writes it ("ViT-B/16", "ViT-L/14@336px"); "" takes
# MODEL.CLIP.NAME and MODEL.CLIP.WEIGHTS.
head.key("CLIP_PRETRAINED", "", choices=("", *OPENAI_NAMES), clip_backbone=True)
# What of CLIP trains: "attention" is query and value matrices of both towers (official),
# "visual_attention" all attention of the image tower and its positions (version 1), "full" all
# blocks of both towers.
head.key("CLIP_FINETUNE", "attention", choices=("attention", "visual_attention", "full", "none"))
# Channels of the cost embedding, and number of attention heads.
head.key("HIDDEN_DIMS", 128, SIDE)
head.key("NUM_HEADS", 4, SIDE, folder=(1, 16))
# Grid of the cost volume in cells, and side of its attention windows.
head.key("FEATURE_RESOLUTION", [24, 24], SQUARE, folder=(1, 32))
head.key("WINDOW_SIZES", 12, SIDE, folder=(1, 16))
# Pooling before attention over classes, one number for each aggregation layer: 2 in training, 1 in evaluation
# of the official numbers.
head.key("POOLING_SIZES", [2, 2], each(SIDE, whole=True))
# Channels of text and appearance guidance before and after their projection.
head.key("TEXT_GUIDANCE_DIM", 512)
head.key("TEXT_GUIDANCE_PROJ_DIM", 128, SIDE)
head.key("APPEARANCE_GUIDANCE_DIM", 512, SIDE)
head.key("APPEARANCE_GUIDANCE_PROJ_DIM", 128, SIDE)
# Channels of the two steps of the decoder, of their guidance before and after projection.
head.key("DECODER_DIMS", [64, 32], GROUPED)
head.key("DECODER_GUIDANCE_DIMS", [256, 128], TWO)
head.key("DECODER_GUIDANCE_PROJ_DIMS", [32, 16], TWO)

top = Section(of=CAT_SEG)
# CAT-Seg's sentence around a class name, the 80 of ImageNet as channels of the cost (version 1),
# or "plain", "a photo of a ...".
top.key("MODEL.PROMPT_ENSEMBLE_TYPE", "single", choices=("single", "imagenet", "plain"))
cat_seg = Section("MODEL.CAT_SEG", of=CAT_SEG)
# Features that guide the aggregation: CLIP's own (official) or a backbone's (version 1).
cat_seg.key("GUIDANCE", "clip", choices=("clip", "backbone"))
# Blocks of CLIP whose outputs guide the decoder; () is after a third and after two thirds.
cat_seg.key("GUIDANCE_BLOCKS", ())
# Residual of CLIP's last block: its class token everywhere (official), or the token itself,
# which is what CLIPSelf distils (version 1), both for MODEL.CLIP.DENSE "token"; the other dense features add none,
# nor do those of an attention pool (SigLIP, PE-Core), and go with "none" alone.
cat_seg.key("RESIDUAL", "cls", choices=("cls", "token", "none"), clip_backbone=True)
# Text of a class with synonyms: that of the "first" (official), or the "mean" of all (version 1).
cat_seg.key("SYNONYMS", "first", choices=("first", "mean"))
# Attention over classes sees at least so many, the rest learned padding, and at most so many,
# the best of the window; 0 is all there are (version 1).
cat_seg.key("PAD_LEN", 256, at_least(0), folder=(0, 512))
# Weights of the guidance backbone: a .pth, .safetensors or .pkl file. Training needs them
# ("random" is taken literally); a checkpoint of the whole model holds them.
cat_seg.key("BACKBONE_WEIGHTS", "", weights=True, folder=None)
# Leave ignored pixels out of the loss; the official loss has them as "no class".
cat_seg.key("IGNORE_IN_LOSS", False)
# Recompute text tower and aggregation in the backward pass, but for what takes long for its size.
cat_seg.key("CHECKPOINTING", False, free=True)

# Plain inference pads the image to a multiple of this, and a mask generator's canvas.
top.key("MODEL.MASK_FORMER.SIZE_DIVISIBILITY", 32, of=["CATSeg", "OpenPanoptic"], folder=(1, 768))

# The backbone that guides version 1: Detectron2's keys.
Section("MODEL.BACKBONE", of=CAT_SEG, when=GUIDED).all_stock()
resnets = Section("MODEL.RESNETS", of=CAT_SEG, when=GUIDED)
# DeepLab's key of the ResNet that guides version 1 (MODEL.BACKBONE.NAME:
# build_resnet_deeplab_backbone): "basic" or "deeplab".
resnets.key("STEM_TYPE", "deeplab")
resnets.all_stock()
# The Swin transformer that guides version 1's large model (MODEL.BACKBONE.NAME: GuidanceSwin).
swin = Section("MODEL.SWIN", of=CAT_SEG, when=GUIDED)
# Channels of the first stage.
swin.key("EMBED_DIM", 96)
# Blocks and attention heads of each stage, side of the attention windows in tokens.
swin.key("DEPTHS", [2, 2, 6, 2])
swin.key("NUM_HEADS", [3, 6, 12, 24])
swin.key("WINDOW_SIZE", 7, folder=(1, 16))
# Stages that are given out.
swin.key("OUT_FEATURES", ["res2", "res3", "res4", "res5"])

image = Section("INPUT", of=CAT_SEG)
# Sides in pixels of training images: one of the shorter ones, drawn or in turn, unless the longer one exceeds MAX.
image.stock("MIN_SIZE_TRAIN")
image.stock("MIN_SIZE_TRAIN_SAMPLING")
image.stock("MAX_SIZE_TRAIN", at_least(1))
# The crop that is trained on.
Section("INPUT.CROP", of=CAT_SEG).all_stock()
image.key("COLOR_AUG_SSD", False)  # brightness, contrast, saturation and hue, as SSD does
# Side in pixels that training crops are padded to.
image.key("SIZE_DIVISIBILITY", -1, folder=(-1, 768))

# Windows of 384 pixels on a square of 640 and a global view (the published numbers), or the whole image at once.
top.key("TEST.SLIDING_WINDOW", False, free=True)
background = Section("TEST.BACKGROUND", of=["ZeroShotSegmenter", "CATSeg"], free=True)
# In data sets that have a background (VOC-20b): whether its names compete for pixels, as CAT-Seg does it.
background.key("WORDS", True)
# There, score below which the best class of a pixel gives way to the background; 0 is never. Also the default of
# predict --threshold, in whose place 0 is 0.5.
background.key("THRESHOLD", 0.0, within(0, 1))

# Without training (MODEL.META_ARCHITECTURE: ZeroShotSegmenter): the weights are those of MODEL.CLIP, nothing learns.
zero_shot = Section("MODEL.ZERO_SHOT", of=["ZeroShotSegmenter"])
# Factor of the cosines before the softmax over all names.
zero_shot.key("SCALE", 40.0, POSITIVE)
# Sentences around a class name, whose embeddings are averaged: OpenAI's 80, ViLD's 63, TCL's nine, or one.
zero_shot.key("TEMPLATES", "openai80", choices=("openai80", "vild63", "tcl9", "single"))
# Names of a class that count: every one by itself, of which the best is the class's ("max"), the "mean" of their
# embeddings, or the "first" alone.
zero_shot.key("SYNONYMS", "max", choices=("max", "mean", "first"))
# Side in pixels of the windows, a multiple of CLIP's patch; 0 is the whole image as one window.
zero_shot.key("WINDOW", 336, at_least(0), folder=(0, 672))
# Pixels from one window to the next, from a sixteenth of WINDOW to WINDOW.
zero_shot.key("STRIDE", 112, at_least(1), folder=(56, 672))

# Values of Detectron2's keys in CAT-Seg's published files that differ from the default and pass, though nothing reads
# them.
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
# Further keys of its files that nothing reads, with the values that pass. The class lists are those of the data sets,
# which have them as their vocabularies.
CLASS_LISTS = [
    "",
    *(f"datasets/{name}.json" for name in ("coco", "ade150", "ade847", "voc20", "pc59", "pc459")),
    "datasets/voc20b.json",
]
CAT_SEG_UNREAD: dict[str, list[object]] = {
    "MODEL.SEM_SEG_HEAD.ATTENTION_TYPE": ["linear"],
    "MODEL.SEM_SEG_HEAD.NUM_LAYERS": [2],  # POOLING_SIZES has a number for each layer
    "MODEL.SEM_SEG_HEAD.PROMPT_DEPTH": [0],
    "MODEL.SEM_SEG_HEAD.PROMPT_LENGTH": [0],
    "MODEL.SEM_SEG_HEAD.TRAIN_CLASS_JSON": [*CLASS_LISTS],
    "MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON": [*CLASS_LISTS],
    "MODEL.SEM_SEG_HEAD.TRAIN_CLASS_INDEXES": [""],
    "MODEL.SEM_SEG_HEAD.TEST_CLASS_INDEXES": [""],
    "MODEL.CLIP_PIXEL_MEAN": [[122.7709383, 116.7460125, 104.09373615]],
    "MODEL.CLIP_PIXEL_STD": [[68.5005327, 66.6321579, 70.3231630]],
    "MODEL.PROMPT_ENSEMBLE": [False],
    "MODEL.SWIN.APE": [False],
    "MODEL.SWIN.DROP_PATH_RATE": [0.3],
    "MODEL.SWIN.PATCH_NORM": [True],
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": [224, 384],
    "DATASETS.VAL_ALL": [["coco_2017_val_all_stuff_sem_seg"]],
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": [1.0],
    "INPUT.DATASET_MAPPER_NAME": ["mask_former_semantic"],
    "SOLVER.OPTIMIZER": ["ADAMW"],
    "SOLVER.POLY_LR_POWER": [0.9],
    "SOLVER.POLY_LR_CONSTANT_ENDING": [0.0],
    "SOLVER.WEIGHT_DECAY_EMBED": [0.0],
}
