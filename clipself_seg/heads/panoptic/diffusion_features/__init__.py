"""Stable Diffusion as a source of features, with ODISE's implicit captioner."""

from clipself_seg.heads.panoptic.diffusion_features.source import (
    DiffusionFeatures,
    build_diffusion_features,
)

__all__ = ["DiffusionFeatures", "build_diffusion_features"]
