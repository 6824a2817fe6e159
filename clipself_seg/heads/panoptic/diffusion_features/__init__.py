"""Feature maps of Stable Diffusion with ODISE's implicit captioner; start with ``source.py``."""

from clipself_seg.heads.panoptic.diffusion_features.source import (
    DiffusionFeatures,
    build_diffusion_features,
)

__all__ = ["DiffusionFeatures", "build_diffusion_features"]
