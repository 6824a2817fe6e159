"""Keys of TEST.NUMBERS: what is off says nothing, and what a task does not measure is refused."""

from __future__ import annotations

import pytest

from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.evaluation.extras import Extras


def test_everything_is_off():
    extras = Extras.from_config(load_config(None), "a task", ())
    assert extras == Extras() and extras.text() == ""


def test_a_key_that_a_task_does_not_measure_is_refused():
    cfg = load_config(None, ["TEST.NUMBERS.SYNONYMS", "3", "TEST.NUMBERS.BOUNDARY", "True"])
    extras = Extras.from_config(cfg, "a task", ("synonyms", "boundary"))
    assert extras.text() == "BOUNDARY, SYNONYMS 3"
    with pytest.raises(
        InputError, match="BOUNDARY is True, which a task does not measure: it has SYNONYMS"
    ):
        Extras.from_config(cfg, "a task", ("synonyms",))


def test_rounds_are_not_negative():
    with pytest.raises(InputError, match="TEST.NUMBERS.SYNONYMS must be 0 or more"):
        load_config(None, ["TEST.NUMBERS.SYNONYMS", "-1"])
