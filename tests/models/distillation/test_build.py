"""Values of MODEL.CLIPSELF.TARGET and the objectives that they name."""

from __future__ import annotations

from clipself_seg.config import load_config
from clipself_seg.config.keys import CHOICES
from clipself_seg.models.distillation.build import OBJECTIVES, build_objective
from clipself_seg.models.distillation.crops import CropDistillation

TARGET = "MODEL.CLIPSELF.TARGET"


def test_every_target_that_is_allowed_has_an_objective():
    assert tuple(OBJECTIVES) == CHOICES[TARGET]


def test_crops_are_the_target_of_a_configuration_that_names_none():
    assert isinstance(build_objective(load_config(None, [])), CropDistillation)
