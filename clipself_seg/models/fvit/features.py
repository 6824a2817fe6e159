"""Features of F-ViT: one pass of the tower gives the taps of the pyramid and the dense features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.tower import DENSE, TransformerTower
from clipself_seg.heads.fvit.feature_pyramid import FeaturePyramid
from clipself_seg.heads.fvit.resizers import TapResizers


def pyramid_and_dense(
    images: Tensor,
    tower: TransformerTower,
    taps: Sequence[str],
    resizers: TapResizers,
    neck: FeaturePyramid,
    *,
    dense: bool,
    tower_learns: bool,
) -> tuple[list[Tensor], Tensor | None]:
    """Levels P2 to P6 of normalised images (B, 3, side, side), and unit dense features (B, E, g, g) or None.

    Args:
        images: normalised and padded.
        tower: CLIP's image tower.
        taps: names of the four features of it that the pyramid is made of.
        resizers: resizers of the taps.
        neck: feature pyramid.
        dense: whether dense features are made.
        tower_learns: whether gradients reach the tower.
    """
    wanted = [*taps, DENSE] if dense else list(taps)
    with torch.set_grad_enabled(torch.is_grad_enabled() and tower_learns):
        maps = tower.features(images, wanted)
    levels = neck([maps[name] for name in taps], resizers)
    return levels, F.normalize(maps[DENSE].float(), dim=1) if dense else None
