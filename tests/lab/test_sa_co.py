"""SA-Co's measures: values by hand, and a plain re-computation."""

import itertools
import math

import numpy as np
import pytest

from lab.sa_co import sa_co


def ious(*rows, predicted=0):
    return np.array(rows, float).reshape(len(rows), -1 if rows and rows[0] else predicted)


# Three positive words (two masks found of two, none of one, two of one), and three that are absent, one of them found.
BY_HAND = [
    ious([0.9, 0.0], [0.0, 0.6]),
    ious([], predicted=0),
    ious([0.1, 0.8]),
    *(ious(predicted=number) for number in (0, 1, 0)),
]


def test_values_by_hand():
    f1, mcc, cgf1 = sa_co(BY_HAND)
    assert f1 == pytest.approx((3 * 0.75 + 4 * 0.5 + 2 * 0.25) / 10)
    assert mcc == pytest.approx(1 / 3) and cgf1 == pytest.approx(100 * 0.475 / 3)


def test_without_positives_there_is_no_f1_and_without_negatives_no_correlation():
    assert math.isnan(sa_co([ious(predicted=1)]).f1)
    assert sa_co([ious([0.9])]) == (pytest.approx(0.9), 0.0, 0.0)


def plain(datapoints):
    """As the paper says it, pair by pair; the best matching by trying all."""
    counts, words = np.zeros((10, 3)), np.zeros((2, 2))
    for one in datapoints:
        true, predicted = one.shape
        words[int(true > 0), int(predicted > 0)] += 1
        small, large = sorted((range(true), range(predicted)), key=len)
        pairings = [
            [one[pair if true <= predicted else pair[::-1]] for pair in zip(small, places)]
            for places in itertools.permutations(large, len(small))
        ]
        matched = max(pairings, key=sum)
        for row in range(10 if true else 0):
            right = sum(iou >= (50 + 5 * row) / 100 for iou in matched)
            counts[row] += right, predicted - right, true - right
    f1 = np.mean([2 * tp / (2 * tp + fp + fn) for tp, fp, fn in counts])
    (tn, fp), (fn, tp) = words
    mcc = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return f1, mcc, 100 * f1 * mcc


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_plain_computation(seed):
    rng = np.random.default_rng(seed)
    shapes = rng.integers(0, 4, (30, 2))
    datapoints = [rng.choice([0.3, 0.5, 0.62, 0.7, 0.95], shape) for shape in shapes]
    assert sa_co(datapoints) == pytest.approx(plain(datapoints))
