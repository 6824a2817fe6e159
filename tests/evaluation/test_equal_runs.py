"""Runs of equal pairs of labels."""

from __future__ import annotations

import numpy as np
import pytest

from clipself_seg.evaluation.equal_runs import equal_runs


@pytest.mark.parametrize(
    ("one", "other", "starts", "lengths"),
    [
        ([], [], [], []),
        ([5], [2], [0], [1]),
        ([1, 1, 1, 2], [7, 7, 8, 8], [0, 2, 3], [2, 1, 1]),
        ([3, 3, 3], [4, 4, 4], [0], [3]),
    ],
)
def test_a_run_ends_where_either_label_changes(one, other, starts, lengths):
    found = equal_runs(np.array(one, np.uint8), np.array(other, np.int64))
    assert [part.tolist() for part in found] == [starts, lengths]
    assert all(part.dtype == np.int64 for part in found)


def test_lengths_are_those_of_a_loop():
    one, other = np.random.default_rng(0).integers(0, 2, (2, 50))
    starts, lengths = equal_runs(one, other)
    pairs = [(a, b) for a, b, n in zip(one[starts], other[starts], lengths) for _ in range(n)]
    assert pairs == list(zip(one, other))
