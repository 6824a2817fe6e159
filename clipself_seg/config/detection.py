"""The keys of detection with F-ViT, and of an RPN alone.

"Official" in the comments is CLIPSelf's detector (arXiv 2310.01403, 4.2). Of Detectron2's keys detection reads
``TEST.DETECTIONS_PER_IMAGE`` and ``MODEL.WEIGHTS``, of the panoptic model's ``MODEL.FUSION``; a StockRPN reads those of
Detectron2's ``ProposalNetwork``.
"""

from __future__ import annotations

from detectron2.config import CfgNode

# What a key may be, where that is a short list.
DETECTION_CHOICES: dict[str, tuple[str, ...]] = {
    "INPUT.DETECTION.RESIZE": ("opencv", "pillow"),
    "MODEL.FVIT.PYRAMID": ("fpn", "simple"),
    "TEST.DETECTION.LIMITS": ("detectron2", "mmdetection"),
}


def add_detection_keys(cfg: CfgNode) -> None:
    """Add the keys of detection to `cfg`; those of the panoptic model have to be there."""
    fvit = cfg.MODEL.FVIT = CfgNode()
    # Blocks, from 0, whose outputs are the four taps, the finest map first. Four times the last one is Table
    # A3's "last".
    fvit.BLOCKS = (3, 5, 7, 11)
    # "fpn" adds the levels up from the top (official), "simple" is ViTDet's SimpleFPN (Table A3).
    fvit.PYRAMID = "fpn"
    # Channels of its levels.
    fvit.CHANNELS = 256
    # Mean and standard deviation of RGB values in 0..255; official are ImageNet's.
    fvit.PIXEL_MEAN = (123.675, 116.28, 103.53)
    fvit.PIXEL_STD = (58.395, 57.12, 57.375)
    # Batch norms in the RPN, a mask head, and objects that get their best proposals (all: OV-LVIS).
    fvit.RPN_NORM = False
    fvit.MASKS = False
    fvit.LOW_QUALITY = False
    # RoIs of an image that the losses see, at most a quarter of them positive.
    fvit.ROIS_PER_IMAGE = 512
    # Weight of RoIs without an object in the classification loss: 0.6 for OV-COCO, 0.9 for OV-LVIS.
    fvit.BACKGROUND_WEIGHT = 0.6
    # The factor of the detector's cosines, 50 at the beginning, stays that in evaluation (transfer).
    fvit.FIXED_TEMPERATURE = False
    # Factor of CLIP's cosines.
    fvit.CLIP_TEMPERATURE = 75.0
    # Whether CLIP's image tower learns, at SOLVER.CLIP_MULTIPLIER times the base rate (Table A3).
    fvit.TRAIN_CLIP = False
    # Anchors of a level that become proposals, and proposals of an image.
    fvit.PROPOSALS_BEFORE = 2000
    fvit.PROPOSALS_AFTER = 1000
    # A detection needs a higher score, and goes where a better one of its class overlaps it more.
    fvit.SCORE_THRESHOLD = 0.01
    fvit.NMS_IOU = 0.4
    rpn = cfg.MODEL.STOCK_RPN = CfgNode()
    # Weights of the backbone of a StockRPN: a .pth, .safetensors or .pkl file, such as Detectron2's
    # ImageNetPretrained/torchvision/R-50.pkl. A checkpoint of the whole model holds them.
    rpn.BACKBONE_WEIGHTS = ""
    _add_input(cfg)
    _add_test(cfg)


def _add_input(cfg: CfgNode) -> None:
    detection = cfg.INPUT.DETECTION = CfgNode()
    # Side in pixels of the square that an image is fitted into, in training and evaluation. Official: 640
    # for OV-COCO with B/16, 1024 for OV-LVIS with B/16, 896 with L/14.
    detection.SIDE = 640
    # The longer side of a training image is resized to a random factor of SIDE between these, and what
    # exceeds SIDE is cut off.
    detection.MIN_SCALE = 0.1
    detection.MAX_SCALE = 2.0
    # "opencv" is bilinear without antialiasing (official), "pillow" antialiases and rounds sizes as
    # Detectron2 does.
    detection.RESIZE = "opencv"


def _add_test(cfg: CfgNode) -> None:
    detection = cfg.TEST.DETECTION = CfgNode()
    # What is measured: "boxes", and "masks" of a model that has them.
    detection.TASKS = ("boxes",)
    # Detections that COCO's numbers count, of a class in an image: 100 as "detectron2", or AP at 100 and all
    # other numbers at 300 as "mmdetection" (official). LVIS's rules count 300 of an image.
    detection.LIMITS = "detectron2"
