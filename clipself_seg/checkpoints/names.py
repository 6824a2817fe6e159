"""Compares the tensor names and shapes of a checkpoint with those that a model needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

LONGEST = 200
"""Characters of a name that a message repeats."""


class NameProblem(NamedTuple):
    """What is wrong with the names of a checkpoint: "lacks 2 tensors", and the first of them."""

    what: str
    names: str


def name_problem(wanted: Iterable[str], given: Iterable[str]) -> NameProblem | None:
    """First difference between a checkpoint's names and a model's; None if there is none.

    Args:
        wanted: names of the model's tensors.
        given: names of the checkpoint's tensors.
    """
    needed, there = dict.fromkeys(wanted), dict.fromkeys(given)
    for verb, kind, names in (
        ("lacks", "", [name for name in needed if name not in there]),
        ("has", "unexpected ", [name for name in there if name not in needed]),
    ):
        if names:
            first = [n if len(n) <= LONGEST else f"{n[:LONGEST]}..." for n in names[:3]]
            shown = ", ".join(first) + (", ..." if len(names) > 3 else "")
            noun = "tensor" if len(names) == 1 else "tensors"
            return NameProblem(f"{verb} {len(names)} {kind}{noun}", shown)
    return None
