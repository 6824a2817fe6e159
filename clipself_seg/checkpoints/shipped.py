"""Weights that come with the project, by tag."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parent.parent / "mini" / "weights"


# Tags of the weights that come with the project: files laid over one another, the later ones win.
MINI_CLIP = "ViT-Mini-8"  # architecture of the CLIP that knows the generated worlds
SHIPPED_TAGS = {
    "mini": ("vit_mini_8",),
    "mini-clipself": ("vit_mini_8", "vit_mini_8_clipself"),
    "mini-clipself-proposals": ("vit_mini_8", "vit_mini_8_clipself_proposals"),
}


# Tag for MODEL.WEIGHTS -> file.
SHIPPED_MODELS = {
    "mini-cat-seg": SHIPPED / "cat_seg_mini.safetensors",
    "mini-open-panoptic": SHIPPED / "open_panoptic_mini.safetensors",
    "mini-fvit": SHIPPED / "fvit_mini.safetensors",
}
