"""CLIP image and text towers with dense features, for every published checkpoint layout.

Start with ``vision_language.py`` (what models ask of a backbone), then ``model.py`` (CLIP and `load_clip`) and
``tower.py`` (what every image tower offers). Of all this only ``backbone.py`` and ``guest_backbone.py`` need
Detectron2: how models get CLIP, or a backbone of somebody else's, from BACKBONE_REGISTRY.
"""

from clipself_seg.clip.find_kind import list_architectures
from clipself_seg.clip.model import CLIP, load_clip, save_clip
from clipself_seg.clip.text_bank import TextBank
from clipself_seg.clip.vision_language import VisionLanguageBackbone

__all__ = [
    "CLIP",
    "TextBank",
    "VisionLanguageBackbone",
    "list_architectures",
    "load_clip",
    "save_clip",
]
