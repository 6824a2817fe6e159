"""The keys of open-vocabulary detection.

"Official" in the comments is F-ViT, the detector of CLIPSelf (arXiv 2310.01403).
"""

from __future__ import annotations

from detectron2.config import CfgNode

# What a key may be, where that is a short list.
DETECTION_CHOICES: dict[str, tuple[str, ...]] = {
    "INPUT.DETECTION.RESIZE": ("opencv", "pillow"),
}


def add_detection_keys(cfg: CfgNode) -> None:
    """Add the keys of detection to `cfg`."""
    _add_input(cfg)


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
