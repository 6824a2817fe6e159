"""The keys of semantic segmentation without training, ``MODEL.META_ARCHITECTURE: ZeroShotSegmenter``.

The weights are those of ``MODEL.CLIP``, and nothing learns. The size of images is ``INPUT.MIN_SIZE_TEST``, and what
is background in data sets that have one is ``TEST.BACKGROUND``.
"""

from __future__ import annotations

from detectron2.config import CfgNode

# What a key may be, where that is a short list.
ZERO_SHOT_CHOICES: dict[str, tuple[str, ...]] = {
    "MODEL.ZERO_SHOT.SYNONYMS": ("max", "mean", "first"),
    "MODEL.ZERO_SHOT.TEMPLATES": ("openai80", "vild63", "tcl9", "single"),
}


def add_zero_shot_keys(cfg: CfgNode) -> None:
    """Add the keys of `models.zero_shot` to `cfg`."""
    cfg.MODEL.ZERO_SHOT = CfgNode()
    # Factor of the cosines before the softmax over all names.
    cfg.MODEL.ZERO_SHOT.SCALE = 40.0
    # Sentences around a class name, whose embeddings are averaged: OpenAI's 80, ViLD's 63, TCL's nine, or one.
    cfg.MODEL.ZERO_SHOT.TEMPLATES = "openai80"
    # Names of a class that count: every one by itself, of which the best is the class's ("max"), the "mean" of their
    # embeddings, or the "first" alone.
    cfg.MODEL.ZERO_SHOT.SYNONYMS = "max"
    # Side in pixels of the windows, a multiple of CLIP's patch; 0 is the whole image as one window.
    cfg.MODEL.ZERO_SHOT.WINDOW = 336
    # Pixels from one window to the next, from a sixteenth of WINDOW to WINDOW.
    cfg.MODEL.ZERO_SHOT.STRIDE = 112
