"""Mask generators: feature maps to mask logits, class logits and void."""

from clipself_seg.heads.panoptic.mask_generator.generator import (
    GeneratorScores,
    GeneratorSizes,
    MaskGenerator,
)

__all__ = ["GeneratorScores", "GeneratorSizes", "MaskGenerator"]
