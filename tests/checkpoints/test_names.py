"""The first difference of names is told, in few words whatever they are."""

from __future__ import annotations

from clipself_seg.checkpoints.read import name_problem


def test_what_lacks_comes_before_what_is_unexpected():
    assert name_problem("ab", "ab") is None
    assert name_problem("abcde", "ax") == ("lacks 4 tensors", "b, c, d, ...")
    assert name_problem("a", "abx") == ("has 2 unexpected tensors", "b, x")


def test_a_page_of_a_name_is_not_repeated():
    problem = name_problem(["a"], ["a", "x" * 10_000])
    assert problem.what == "has 1 unexpected tensor" and len(problem.names) < 250
