"""Values of MODEL.CLIPSELF.TARGET and the objectives that they name."""

from __future__ import annotations

import pytest

from clipself_seg.config import checks, load_config
from clipself_seg.config.keys import CHOICES
from clipself_seg.errors import InputError
from clipself_seg.models.distillation.objectives import (
    CONTEXTS,
    OBJECTIVES,
    TERMS,
    CropDistillation,
    Original,
    WeightedTerms,
    build_objective,
)

TARGET = "MODEL.CLIPSELF.TARGET"


def test_every_target_that_is_allowed_has_an_objective():
    assert tuple(OBJECTIVES) == CHOICES[TARGET]


def test_crops_are_the_target_of_a_configuration_that_names_none():
    assert isinstance(build_objective(load_config(None, [])), CropDistillation)


def objective(*opts):
    return build_objective(load_config(None, list(opts)))


KEYS = "MODEL.CLIPSELF.OBJECTIVES."
TEACHER = ("MODEL.CLIPSELF.CORRELATION.TEACHER", "original")


def test_every_key_of_a_weight_has_its_term_and_every_term_its_key():
    weights = load_config(None).MODEL.CLIPSELF.OBJECTIVES
    assert list(weights) == list(TERMS) and dict(weights) == {
        name: float(name == "CROPS") for name in TERMS
    }
    assert tuple(f"{KEYS}{name}" for name in TERMS) == checks.OBJECTIVES
    assert {f"{KEYS}{n}" for n, term in TERMS.items() if term.correlated} == {*checks.CORRELATED}
    assert tuple(CONTEXTS) == CHOICES["MODEL.CLIPSELF.CORRELATION.CONTEXT"]


def test_weights_of_a_configuration_are_those_of_its_terms():
    opts = [word for n, name in enumerate(TERMS) for word in (f"{KEYS}{name}", str(n / 2))]
    made = objective(*opts, *TEACHER, "MODEL.CLIPSELF.CORRELATION.CONTEXT", "qk")
    assert isinstance(made, WeightedTerms)
    assert made.weights == {name: n / 2 for n, name in enumerate(TERMS) if n}
    assert made.reads == ("queries", "keys", "dense", "image")
    assert isinstance(made.correlation.teacher, Original) and made.correlation.temperature == 0.2


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SPATIAL", "1"], "SPATIAL must be 0 without a teacher of correlations"),
        (["CROPS", "-1"], "CROPS must be 0 or more"),
        (["CROPS", "0"], "every weight of MODEL.CLIPSELF.OBJECTIVES is 0: give one of CROPS,"),
        (["CROPS", "0", "CONTEXT", "1", "TEACHER"], "CONTEXT trains queries alone"),
        (["OWN_CROPS", "1", "TEACHER"], "TEACHER is original, but nothing asks for it"),
        (["OWN_CROPS", "1", "MODEL.CLIPSELF.TARGET", "texts"], "OWN_CROPS must be 0.0 but for"),
        (["CROPS", "0.5", "MODEL.CLIPSELF.TARGET", "captions"], "CROPS must be 1.0 but for"),
        (
            ["COHERENCE", "1", TEACHER[0], "vit_bas_patch14_dinov2"],
            'did you mean "vit_base_patch14',
        ),
    ],
)
def test_weights_that_do_not_go_together_are_refused_in_one_line(opts, message):
    words = [f"{KEYS}{word}" if word in TERMS else word for word in opts]
    if "TEACHER" in words:
        words[-1:] = TEACHER
    with pytest.raises(InputError, match=message) as caught:
        objective(*words)
    assert len(str(caught.value).splitlines()) == 1
