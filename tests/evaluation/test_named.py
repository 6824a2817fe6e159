"""A value is typed alone, or behind its name."""

import pytest

from clipself_seg.errors import InputError
from clipself_seg.evaluation.named import name_and_value


def test_a_name_ends_at_the_first_sign_unless_the_whole_is_a_value():
    typed = [name_and_value(t, "run", "folder", t == "a=b") for t in ("x", "y=z=1", "a=b")]
    assert typed == [("", "x"), ("y", "z=1"), ("", "a=b")]


@pytest.mark.parametrize("typed", ["", "=a", " =a", "a=", "a= "])
def test_what_lacks_name_or_value_is_refused(typed):
    with pytest.raises(InputError, match=f'"{typed}" is no run: give its folder, or NAME=folder'):
        name_and_value(typed, "run", "folder", False)
