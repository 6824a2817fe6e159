"""CLIP image and text towers with dense features, for every published checkpoint layout.

Start with ``model.py`` (`load_clip` and the model), then ``tower.py`` (what every image tower offers).
"""

from clipself_seg.clip.kinds import list_architectures
from clipself_seg.clip.model import DenseCLIP, load_clip, save_clip
from clipself_seg.clip.text_bank import TextBank

__all__ = ["DenseCLIP", "TextBank", "list_architectures", "load_clip", "save_clip"]
