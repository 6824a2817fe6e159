"""The keys of detection have the official values, and others are refused by name."""

from __future__ import annotations

import pytest

from clipself_seg.config import load_config
from clipself_seg.errors import InputError


def test_defaults_are_those_of_the_official_b16():
    given = load_config(None).INPUT.DETECTION
    assert (given.SIDE, given.MIN_SCALE, given.MAX_SCALE, given.RESIZE) == (640, 0.1, 2.0, "opencv")


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("SIDE", "0", "SIDE must be at least 1, got 0"),
        ("MIN_SCALE", "0", "MIN_SCALE must be greater than 0, and finite, got 0.0"),
        ("MAX_SCALE", "inf", "MAX_SCALE must be "),
        ("MIN_SCALE", "2.5", "MIN_SCALE must be at most MAX_SCALE, got 2.5 with .*MAX_SCALE 2.0"),
        ("RESIZE", "openvc", 'RESIZE cannot be "openvc"; did you mean "opencv"'),
    ],
)
def test_a_wrong_value_is_named(key, value, words):
    with pytest.raises(InputError, match=f"the command line: INPUT.DETECTION.{words}"):
        load_config(None, [f"INPUT.DETECTION.{key}", value])
