"""CLIP's image tower for other Detectron2 projects: ``import clipself_seg.register``.

The import registers ``MODEL.BACKBONE.NAME: CLIPBackbone`` and nothing else: no meta-architecture and no data set of
this project meets one of another project under the same name. ``import clipself_seg.models`` registers the models,
and ``clipself://NAME`` for their weights (`models/paths.py`).
"""

from clipself_seg import detectron2_needed  # noqa: F401  (says what to do where it is missing)
from clipself_seg.clip.backbone import CLIPBackbone
from clipself_seg.config import add_clip_backbone_config

__all__ = ["CLIPBackbone", "add_clip_backbone_config"]
