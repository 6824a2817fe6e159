"""Any configuration in small: a mini CLIP, 64 pixels, two images and one step."""

import os
from pathlib import Path

from detectron2.config import CfgNode

import lab.precompute.stock_rpn  # noqa: F401  (enters the model of two configurations)
from clipself_seg.config.declare import why_unread
from clipself_seg.yaml_files import leaves
from tests.tiny import save_noise


def small_values(cfg: CfgNode, clip: str = "ViT-Mini-8") -> dict[str, object]:
    """Keys and values that make it small, those that its model reads.

    Args:
        clip: name of the CLIP.
    """
    kinds = {
        "CATSeg": small_cat_seg,
        "OpenPanoptic": small_panoptic,
        "FViT": small_detection,
        "StockRPN": small_rpn,
        "ZeroShotSegmenter": small_zero_shot,
        "ImageClassifier": small_whole_images,
    }
    small = kinds.get(cfg.MODEL.META_ARCHITECTURE, small_distillation)(cfg)
    small = {"MODEL.CLIP.NAME": clip, "SOLVER.IMS_PER_BATCH": 2} | small
    small |= {"DATALOADER.NUM_WORKERS": 0, "SOLVER.MAX_ITER": 1}
    values = dict(leaves(cfg)) | small
    model = cfg.MODEL.META_ARCHITECTURE
    return {key: value for key, value in small.items() if why_unread(key, values, model) is None}


def small_cat_seg(cfg) -> dict[str, object]:
    """One step on an image of the small COCO-Stuff, for many classes; the head as it is, but for its inputs' widths."""
    guided = cfg.MODEL.CAT_SEG.GUIDANCE == "clip"
    head = "MODEL.SEM_SEG_HEAD."
    changes = {
        "MODEL.CLIP.WEIGHTS": "random",
        "MODEL.CLIP.VISUAL_INIT": "",
        "MODEL.PROMPT_ENSEMBLE_TYPE": "plain",
        f"{head}TEXT_GUIDANCE_DIM": 128,
        f"{head}FEATURE_RESOLUTION": [4, 4],
        f"{head}WINDOW_SIZES": 2,
        "INPUT.SIZE_DIVISIBILITY": 64,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.CROP.SIZE": [64, 64],
        "SOLVER.IMS_PER_BATCH": 1,
        "DATASETS.TRAIN": "('coco_2017_train_stuff_all_sem_seg',)",
        "DATASETS.TEST": "()",
    }
    if cfg.MODEL.CAT_SEG.RESIDUAL == "none":  # of an attention pool, which the mini CLIP has not
        changes["MODEL.CAT_SEG.RESIDUAL"] = "token"
    if guided:
        return changes | {f"{head}APPEARANCE_GUIDANCE_DIM": 128}
    width = 32  # of the backbone's first map
    if cfg.MODEL.BACKBONE.NAME == "GuidanceSwin":
        changes["MODEL.SWIN.EMBED_DIM"] = width
    else:
        changes |= {"MODEL.RESNETS.WIDTH_PER_GROUP": 8, "MODEL.RESNETS.RES2_OUT_CHANNELS": width}
    return changes | {
        "MODEL.CAT_SEG.BACKBONE_WEIGHTS": "random",
        f"{head}APPEARANCE_GUIDANCE_DIM": 4 * width,
        f"{head}DECODER_GUIDANCE_DIMS": [2 * width, width],
    }


def small_panoptic(cfg) -> dict[str, object]:
    """One step on two images of the small COCO; the generator as it is, but for its size."""
    former = "MODEL.MASK_FORMER."
    if cfg.MODEL.MASK_GENERATOR.SOURCE == "masks":
        return small_masks()
    convolutional = cfg.MODEL.MASK_GENERATOR.SOURCE == "clip"
    # A CLIP of another architecture that names masks has weights.
    other = bool(cfg.MODEL.CLIP_BRANCH.NAME)
    named = {"MODEL.CLIP.NAME": "ConvNeXt-Mini-32"} if convolutional else {}
    return named | {
        "MODEL.CLIP.WEIGHTS": "",
        "MODEL.CLIP_BRANCH.TEMPLATES": "odise",
        "MODEL.CLIP_BRANCH.NAME": "ViT-Mini-8" if other else "",
        "MODEL.CLIP_BRANCH.WEIGHTS": "mini-clipself" if other else "",
        "MODEL.DIFFUSION.WEIGHTS": "random-small",
        "MODEL.DIFFUSION.CROP": 64,
        "MODEL.PYRAMID.CHANNELS": 32,
        "MODEL.MASK_GENERATOR.ENCODER_LAYERS": 1,
        f"{former}DEC_LAYERS": 2,
        f"{former}HIDDEN_DIM": 32,
        f"{former}DIM_FEEDFORWARD": 32,
        f"{former}TRAIN_NUM_POINTS": 64,
        "INPUT.IMAGE_SIZE": 64,
        "DATASETS.TRAIN": "('coco_2017_train_panoptic_with_sem_seg',)",
        "DATASETS.TEST": "()",
        "SOLVER.AMP.ENABLED": False,
    }


def small_masks() -> dict[str, object]:
    """The true masks of the two images, named: what has no generator does not train."""
    return {
        "MODEL.CLIP.WEIGHTS": "",
        "MODEL.CLIP_BRANCH.WEIGHTS": "",
        "MODEL.CLIP_BRANCH.INPUT_SIZE": 64,
        "MODEL.CLIP_BRANCH.TEMPLATES": "odise",
        "MODEL.MASK_GENERATOR.OUTPUTS": Path(os.environ["DETECTRON2_DATASETS"])
        / "coco/panoptic_val2017",
        "INPUT.MIN_SIZE_TEST": 64,
        "DATASETS.TEST": "('coco_2017_val_panoptic_with_sem_seg',)",
        "TEST.PANOPTIC.TASKS": "('panoptic',)",
        "SOLVER.AMP.ENABLED": False,
    }


def small_detection(cfg) -> dict[str, object]:
    """One step on two images of the small COCO; the detector as it is, but for its size."""
    return {
        "MODEL.CLIP.WEIGHTS": "",
        "MODEL.FVIT.BLOCKS": str(tuple(min(block, 3) for block in cfg.MODEL.FVIT.BLOCKS)),
        "MODEL.FVIT.CHANNELS": 8,
        "MODEL.FVIT.ROIS_PER_IMAGE": 8,
        "INPUT.DETECTION.SIDE": 64,
        "DATASETS.TRAIN": "('transfer_coco_val',)",
        "DATASETS.TEST": "()",
        "SOLVER.AMP.ENABLED": False,
    }


def small_rpn(cfg) -> dict[str, object]:
    """One step on two images of the small COCO; the RPN as it is, on a narrow ResNet of no weights."""
    return {
        "MODEL.CLIP.WEIGHTS": "",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 16 if cfg.MODEL.RESNETS.DEPTH > 34 else 64,
        "MODEL.FPN.NORM": "BN",
        "MODEL.FPN.OUT_CHANNELS": 8,
        "INPUT.DETECTION.SIDE": 64,
        "DATASETS.TRAIN": "('transfer_coco_val',)",
    }


def small_zero_shot(cfg) -> dict[str, object]:
    """Two images of the small COCO-Stuff; as it is, but for the size of images and windows."""
    return {
        "MODEL.CLIP.WEIGHTS": "",
        "MODEL.ZERO_SHOT.TEMPLATES": "single",
        "MODEL.ZERO_SHOT.WINDOW": 32 if cfg.MODEL.ZERO_SHOT.WINDOW else 0,
        "MODEL.ZERO_SHOT.STRIDE": 16,
        "INPUT.MIN_SIZE_TEST": 32,
        "DATASETS.TEST": "('coco_2017_train_stuff_all_sem_seg',)",
    }


def small_whole_images(cfg) -> dict[str, object]:
    """Two images of two classes, as they are."""
    for name in ("dog", "cat"):
        save_noise(Path(os.environ["DETECTRON2_DATASETS"]) / f"imagenet/val/{name}/0.png", 70, 90)
    return {
        "MODEL.CLIP.WEIGHTS": "",
        "DATASETS.TEST": "('imagenet_val',)",
        "TEST.REGIONS.TEMPLATES": "single",
    }


def small_distillation(cfg) -> dict[str, object]:
    """One step of a distillation, or the regions of one image."""
    target = cfg.MODEL.CLIPSELF.TARGET
    train = {
        "grid": "lvis_v1_train" if "lvis" in str(cfg.DATASETS.TRAIN) else "coco_2017_train",
        "proposals": (
            "lvis_v1_train_proposals"
            if "lvis" in str(cfg.DATASETS.TRAIN)
            else "coco_2017_train_proposals"
        ),
        "texts": "coco_2017_train_region_text",
        "captions": "coco_2017_train_captions",
    }[cfg.INPUT.REGIONS.SOURCE if target == "crops" else target]
    trains = cfg.MODEL.META_ARCHITECTURE == "CLIPSelf"
    return {
        "MODEL.CLIP.WEIGHTS": "",
        "MODEL.CLIP.TRAINABLE_BLOCKS": min(cfg.MODEL.CLIP.TRAINABLE_BLOCKS, 3),
        "INPUT.REGIONS.STUDENT_SIZE": 64,
        "DATASETS.TRAIN": f"('{train}',)",
        # Reading regions takes longer than a step and is the other files' job.
        "DATASETS.TEST": "()" if trains else "('coco_2017_val_panoptic',)",
        "TEST.REGIONS.SIZES": "()",
        "TEST.REGIONS.TEMPLATES": "single",
    }
