"""What a run shares with the one that it goes on with."""

from __future__ import annotations

import json

import pytest

from clipself_seg.config import flatten, load_config
from clipself_seg.errors import InputError
from clipself_seg.training.settings import BEFORE_KEYS, check_same_run


def test_a_difference_as_long_as_a_page_is_one_sentence():
    with pytest.raises(InputError, match="cannot resume: a was 'xxx.*, is 1. Restore") as caught:
        check_same_run({"a": "x" * 5000}, {"a": 1})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("key", "value"),
    [("MODEL.CLIP.DENSE", "value"), ("MODEL.CLIPSELF.OBJECTIVES.SPATIAL", 0.1)],
)
def test_a_checkpoint_from_before_a_key_goes_on_as_it_began(key, value):
    now = json.loads(json.dumps(dict(flatten(load_config(None)))))
    assert {name: now[name] for name in BEFORE_KEYS} == BEFORE_KEYS
    old = {name: of_run for name, of_run in now.items() if name not in BEFORE_KEYS}
    check_same_run(old, now)
    with pytest.raises(InputError, match=f"{key} was {BEFORE_KEYS[key]!r}, is {value!r}. Restore"):
        check_same_run(old, now | {key: value})
    check_same_run(old | {key: value}, now | {key: value})
