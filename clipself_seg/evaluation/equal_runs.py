"""Counts pairs of labels by run-length encoding along image rows, where runs are far fewer than pixels."""

from __future__ import annotations

import numpy as np


def equal_runs(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal pairs begin, and how long they are, int64 (n,) each.

    Args:
        one: labels (N,).
        other: labels (N,) of the same places.
    """
    changes = np.ones(len(one) + 1, dtype=bool)  # both ends are bounds of runs
    np.not_equal(one[1:], one[:-1], out=changes[1:-1])
    changes[1:-1] |= other[1:] != other[:-1]
    bounds = np.flatnonzero(changes) if len(one) else np.zeros(1, dtype=np.int64)
    return bounds[:-1], np.diff(bounds)
