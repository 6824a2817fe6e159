"""Pairs of labels are counted by runs along the rows of an image, of which there are far fewer than pixels."""

from __future__ import annotations

import numpy as np


def equal_runs(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal pairs begin, and how long they are, int64 (n,) each.

    Args:
        one: labels (N,).
        other: labels (N,) of the same places.
    """
    changes = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    starts = np.flatnonzero(changes) + 1
    if len(one):
        starts = np.concatenate([[0], starts])
    return starts, np.diff(starts, append=len(one))
