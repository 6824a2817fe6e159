"""The keys of CAT-Seg, under CAT-Seg's names where it has one, so that its own YAML files merge.

"Official" in the comments is the CVPR 2024 code (arXiv 2303.11797v2); "version 1" the code of the
first arXiv version, the baseline of CLIPSelf's Table 5. Of Detectron2's keys semantic segmentation
reads ``INPUT.{MIN,MAX}_SIZE_{TRAIN,TEST}``, ``INPUT.CROP``, ``INPUT.FORMAT`` (RGB),
``MODEL.WEIGHTS``, ``MODEL.BACKBONE``, ``MODEL.RESNETS`` and ``MODEL.SEM_SEG_HEAD.IGNORE_VALUE``.
"""

from __future__ import annotations

from detectron2.config import CfgNode

# What a key may be, where that is a short list.
CAT_SEG_CHOICES: dict[str, tuple[str, ...]] = {
    "MODEL.CAT_SEG.GUIDANCE": ("clip", "backbone"),
    "MODEL.CAT_SEG.RESIDUAL": ("cls", "token", "none"),
    "MODEL.CAT_SEG.SYNONYMS": ("first", "mean"),
    "MODEL.PROMPT_ENSEMBLE_TYPE": ("single", "imagenet", "plain"),
    "MODEL.SEM_SEG_HEAD.CLIP_FINETUNE": ("attention", "visual_attention", "full", "none"),
    "TEST.MIOU_RULE": ("present", "union"),
}

HEAD = "MODEL.SEM_SEG_HEAD."
# Keys of CAT-Seg's own files that nothing reads here, with the values that those files have, which pass.
CAT_SEG_UNREAD: dict[str, list[object]] = {
    f"{HEAD}ATTENTION_TYPE": ["linear"],
    f"{HEAD}NUM_LAYERS": [2],  # POOLING_SIZES has a number for each layer
    f"{HEAD}PROMPT_DEPTH": [0],
    f"{HEAD}PROMPT_LENGTH": [0],
    f"{HEAD}TRAIN_CLASS_INDEXES": [""],
    f"{HEAD}TEST_CLASS_INDEXES": [""],
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


def add_cat_seg_keys(cfg: CfgNode) -> None:
    """Add the keys of semantic segmentation to `cfg`."""
    _add_head(cfg)
    _add_switches(cfg)
    # DeepLab's key of the ResNet that guides version 1 (MODEL.BACKBONE.NAME:
    # build_resnet_deeplab_backbone): "basic" or "deeplab".
    cfg.MODEL.RESNETS.STEM_TYPE = "deeplab"
    _add_swin(cfg)
    _add_running(cfg)


def _add_head(cfg: CfgNode) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    # OpenAI's name of the CLIP, as CAT-Seg writes it ("ViT-B/16", "ViT-L/14@336px"); "" takes
    # MODEL.CLIP.NAME and MODEL.CLIP.WEIGHTS.
    head.CLIP_PRETRAINED = ""
    # What of CLIP trains: "attention" is query and value matrices of both towers (official),
    # "visual_attention" all attention of the image tower and its positions (version 1), "full" all
    # blocks of both towers.
    head.CLIP_FINETUNE = "attention"
    # Class lists as flat JSON files, instead of the data sets' own vocabularies. CAT-Seg's own
    # (coco.json, ade150.json, ...) are built in, and need not be there.
    head.TRAIN_CLASS_JSON = ""
    head.TEST_CLASS_JSON = ""
    # Channels of the cost embedding, and number of attention heads.
    head.HIDDEN_DIMS = 128
    head.NUM_HEADS = 4
    # Grid of the cost volume in cells, and side of its attention windows.
    head.FEATURE_RESOLUTION = [24, 24]
    head.WINDOW_SIZES = 12
    # Pooling before attention over classes, one number for each aggregation layer: 2 in training, 1 in evaluation
    # of the official numbers.
    head.POOLING_SIZES = [2, 2]
    # Channels of text and appearance guidance before and after their projection.
    head.TEXT_GUIDANCE_DIM = 512
    head.TEXT_GUIDANCE_PROJ_DIM = 128
    head.APPEARANCE_GUIDANCE_DIM = 512
    head.APPEARANCE_GUIDANCE_PROJ_DIM = 128
    # Channels of the two steps of the decoder, of their guidance before and after projection.
    head.DECODER_DIMS = [64, 32]
    head.DECODER_GUIDANCE_DIMS = [256, 128]
    head.DECODER_GUIDANCE_PROJ_DIMS = [32, 16]


def _add_switches(cfg: CfgNode) -> None:
    # CAT-Seg's sentence around a class name, the 80 of ImageNet as channels of the cost (version 1),
    # or "plain", "a photo of a ...".
    cfg.MODEL.PROMPT_ENSEMBLE_TYPE = "single"
    cfg.MODEL.CLIP.VISUAL_INIT = ""  # a distilled CLIP whose image tower the training starts from
    cfg.MODEL.CAT_SEG = CfgNode()
    # Features that guide the aggregation: CLIP's own (official) or a backbone's (version 1).
    cfg.MODEL.CAT_SEG.GUIDANCE = "clip"
    # Blocks of CLIP whose outputs guide the decoder; () is after a third and after two thirds.
    cfg.MODEL.CAT_SEG.GUIDANCE_BLOCKS = ()
    # Residual of CLIP's last block: its class token everywhere (official), or the token itself,
    # which is what CLIPSelf distils (version 1), both for MODEL.CLIP.DENSE "token"; the other dense features add none,
    # nor do those of an attention pool (SigLIP, PE-Core), and go with "none" alone.
    cfg.MODEL.CAT_SEG.RESIDUAL = "cls"
    # Text of a class with synonyms: that of the "first" (official), or the "mean" of all (version 1).
    cfg.MODEL.CAT_SEG.SYNONYMS = "first"
    # Attention over classes sees at least so many, the rest learned padding, and at most so many,
    # the best of the window; 0 is all there are (version 1).
    cfg.MODEL.CAT_SEG.PAD_LEN = 256
    # Weights of the guidance backbone: a .pth, .safetensors or .pkl file. Training needs them
    # ("random" is taken literally); a checkpoint of the whole model holds them.
    cfg.MODEL.CAT_SEG.BACKBONE_WEIGHTS = ""
    # Leave ignored pixels out of the loss; the official loss has them as "no class".
    cfg.MODEL.CAT_SEG.IGNORE_IN_LOSS = False
    # Recompute text tower and aggregation in the backward pass.
    cfg.MODEL.CAT_SEG.CHECKPOINTING = False
    cfg.MODEL.MASK_FORMER = CfgNode()
    # Plain inference pads the image to a multiple of this.
    cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY = 32


def _add_swin(cfg: CfgNode) -> None:
    # The Swin transformer that guides version 1's large model (MODEL.BACKBONE.NAME: GuidanceSwin).
    swin = cfg.MODEL.SWIN = CfgNode()
    # Channels of the first stage.
    swin.EMBED_DIM = 96
    # Blocks and attention heads of each stage, side of the attention windows in tokens.
    swin.DEPTHS = [2, 2, 6, 2]
    swin.NUM_HEADS = [3, 6, 12, 24]
    swin.WINDOW_SIZE = 7
    # Stages that are given out.
    swin.OUT_FEATURES = ["res2", "res3", "res4", "res5"]


def _add_running(cfg: CfgNode) -> None:
    # Learning rates of CLIP and of the guidance backbone, relative to BASE_LR; 0 freezes.
    cfg.SOLVER.CLIP_MULTIPLIER = 0.01
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Forward and backward passes that a process's part of a step's batch is divided into.
    cfg.SOLVER.ACCUMULATE = 1
    cfg.INPUT.COLOR_AUG_SSD = False  # brightness, contrast, saturation and hue, as SSD does
    # Side in pixels that training crops are padded to.
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # Windows of 384 pixels on a square of 640 and a global view (the published numbers), or the whole image at once.
    cfg.TEST.SLIDING_WINDOW = False
    # Mean IoU over classes that are "present" in the ground truth (Detectron2 since July 2022), or
    # over the "union" with those predicted.
    cfg.TEST.MIOU_RULE = "present"
    # Class list that tells seen from unseen classes; "" is that of the first training data set.
    cfg.TEST.TRAIN_VOCABULARY = ""
    cfg.TEST.BACKGROUND = CfgNode()
    # In data sets that have a background (VOC-20b): whether its names compete for pixels, as CAT-Seg does it.
    cfg.TEST.BACKGROUND.WORDS = True
    # There, score below which the best class of a pixel gives way to the background; 0 is never. Also the default of
    # predict --threshold, in whose place 0 is 0.5.
    cfg.TEST.BACKGROUND.THRESHOLD = 0.0
