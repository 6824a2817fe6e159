"""What a run shares with the one that it goes on with."""

from __future__ import annotations

import pytest

from clipself_seg.errors import InputError
from clipself_seg.training.settings import check_same_run


def test_a_difference_as_long_as_a_page_is_one_sentence():
    with pytest.raises(InputError, match="cannot resume: a was 'xxx.*, is 1. Restore") as caught:
        check_same_run({"a": "x" * 5000}, {"a": 1})
    assert len(str(caught.value)) < 500
