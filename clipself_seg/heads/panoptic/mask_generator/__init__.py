"""ODISE's mask generator: from feature maps and texts to masks, class logits and void.

Start with ``generator.py``; ``pyramid.py`` gives feature maps, ``outputs.py`` writes results to disk.
"""

from clipself_seg.heads.panoptic.mask_generator.generator import (
    GeneratorScores,
    GeneratorSizes,
    MaskGenerator,
)

__all__ = ["GeneratorScores", "GeneratorSizes", "MaskGenerator"]
