"""CLIP image and text towers with dense features, for every published checkpoint layout.

Start with ``backbone.py`` (what models ask of a backbone), then ``model.py`` (CLIP), ``load.py`` (`load_clip`) and
``tower.py`` (what every image tower offers).
"""

from clipself_seg.clip.backbone import VisionLanguageBackbone
from clipself_seg.clip.kinds import list_architectures
from clipself_seg.clip.load import load_clip
from clipself_seg.clip.model import CLIPBackbone, save_clip
from clipself_seg.clip.text_bank import TextBank

__all__ = [
    "CLIPBackbone",
    "TextBank",
    "VisionLanguageBackbone",
    "list_architectures",
    "load_clip",
    "save_clip",
]
