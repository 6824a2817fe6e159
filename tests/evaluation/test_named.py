"""What is typed alone, or as NAME=value, has one name each."""

import pytest

from clipself_seg.errors import InputError
from clipself_seg.evaluation.named import by_name


def named(*typed):
    return by_name(typed, "run", "folder", alone=lambda text: text == "a=b", name_of=str.upper)


def test_a_name_ends_at_the_first_sign_unless_the_whole_is_a_value():
    assert named("x", "y=z=1", "a=b") == {"X": "x", "y": "z=1", "A=B": "a=b"}


@pytest.mark.parametrize("typed", ["", "=a", " =a", "a=", "a= "])
def test_what_lacks_name_or_value_is_refused(typed):
    with pytest.raises(InputError, match=f'"{typed}" is no run: give its folder, or NAME=folder'):
        named(typed)


def test_names_are_given_once():
    with pytest.raises(InputError, match='two runs are called "X": give each its own, as NAME='):
        named("x", "X=y")
