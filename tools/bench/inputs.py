"""Synthetic detectors, and inputs of panoptic segmentation and detection, the same at every call.

Legend: E embedding of CLIP, h x w coarse cells, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.heads.fvit.boxes import DetectionRule
from clipself_seg.heads.fvit.roi_heads import DetectionSettings
from clipself_seg.heads.fvit.rpn import ProposalRule

COARSE = (64, 88)  # of masks before they are made large


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def areas(count: int, size: tuple[int, int]) -> Tensor:
    """Mask logits (count, *size) that divide the image: positive in what is nearest to a random
    place of one's own, and just beyond."""
    y_h, x_w = ((torch.arange(cells) + 0.5) / cells for cells in COARSE)
    places_2Q = torch.rand(2, count, generator=torch.Generator().manual_seed(0))
    rows_Qh1 = (places_2Q[0, :, None] - y_h)[:, :, None]
    columns_Q1w = (places_2Q[1, :, None] - x_w)[:, None]
    nearness_Qhw = -(rows_Qh1**2 + columns_Q1w**2)
    logits = 200 * (nearness_Qhw - nearness_Qhw.amax(dim=0)) + 0.5
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


class DetectorKind(NamedTuple):
    """One of F-ViT's two detectors.

    Attributes:
        side: side in pixels of the padded square.
        classes: K.
        masks: whether it has a mask head, and an RPN with batch norms.
        settings: of detection.
        proposals: numbers and overlap of proposals.
    """

    side: int
    classes: int
    masks: bool
    settings: DetectionSettings
    proposals: ProposalRule = ProposalRule()


KINDS = {
    "ov_coco": DetectorKind(640, 65, False, DetectionSettings()),
    "ov_lvis": DetectorKind(
        1024,
        1203,
        True,
        DetectionSettings(beta=0.6, clip_temperature=50.0, rule=DetectionRule(1e-4, 0.5, 300)),
    ),
}


def random_text(classes: int, width: int) -> Tensor:
    """Unit vectors (K + 1, E), the background last; the words would take hours to encode."""
    return F.normalize(noise(classes + 1, width), dim=1)
