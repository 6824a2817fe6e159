"""Frozen teachers of token correlations: a copy of the original CLIP, or a backbone of timm."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from clipself_seg.models.distillation.step import Step
from clipself_seg.models.timm_backbone import TimmMaps

KEY = "MODEL.CLIPSELF.CORRELATION.TEACHER"


class CorrelationTeacher(Protocol):
    """The interface of frozen teachers of correlations."""

    def setup(self, device: torch.device) -> None:
        """Loads what it needs, before the first step.

        Raises:
            InputError: its weights cannot be had.
        """

    def features(self, step: Step) -> Tensor:
        """Features (B, D, h, w) of the step's images on the student's grid, float32, without gradient."""


class Original:
    """The original CLIP, the teacher of crops, by its dense features."""

    def setup(self, device: torch.device) -> None:
        """Does nothing, since the model has the original CLIP already."""

    def features(self, step: Step) -> Tensor:
        """Its dense features, see `Step.original_BEhw`."""
        return step.original_BEhw


class TimmBackbone(TimmMaps):
    """A backbone of timm, see `TimmMaps`, on the student's grid."""

    def __init__(self, name: str, pretrained: bool = True) -> None:
        """As `TimmMaps`."""
        super().__init__(name, pretrained, key=KEY, others="none nor original")

    def features(self, step: Step) -> Tensor:
        """Its features (B, D, h, w) on the student's grid, float32, without gradient."""
        return self.maps(step.pixels, step.grid, step.in_precision())


def correlation_teacher(name: str) -> CorrelationTeacher | None:
    """The teacher that ``MODEL.CLIPSELF.CORRELATION.TEACHER`` names: "none", "original", or timm's.

    Raises:
        InputError: as `TimmBackbone`.
    """
    if name == "none":
        return None
    return Original() if name == "original" else TimmBackbone(name)
