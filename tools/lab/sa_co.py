"""SA-Co's measures of words that are asked of images: positive micro F1, IL_MCC and cgF1.

Carion et al., SAM 3: Segment Anything with Concepts (2025), section 5 and appendix E.3. A datapoint is one word asked
of one image; it is positive if the word has a true mask there, else negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.arange(50, 100, 5) / 100  # of the IoU from which on a matched mask is right


class SaCo(NamedTuple):
    """The three measures.

    Attributes:
        f1: positive micro F1 in [0, 1], the mean over `THRESHOLDS`; NaN without a positive datapoint.
        mcc: IL_MCC in [-1, 1], Matthews' correlation of "there" with "predicted"; 0 where one of them never changes.
        cgf1: 100 times their product.
    """

    f1: float
    mcc: float
    cgf1: float


def sa_co(datapoints: Sequence[np.ndarray]) -> SaCo:
    """Measures datapoints.

    Args:
        datapoints: of each the IoU (t, p) of its t true masks with the p predicted ones; t is 0 of a negative one.
    """
    f1, mcc = positive_micro_f1(datapoints), image_level_mcc(datapoints)
    return SaCo(f1, mcc, 100 * f1 * mcc)


def positive_micro_f1(datapoints: Sequence[np.ndarray]) -> float:
    """F1 of all masks of positive datapoints, those of a datapoint matched so that the sum of IoU is largest."""
    from scipy.optimize import linear_sum_assignment

    positive = [ious for ious in datapoints if len(ious)]
    if not positive:
        return math.nan
    matched = np.concatenate([ious[linear_sum_assignment(-ious)] for ious in positive])
    right = (matched >= THRESHOLDS[:, None]).sum(axis=1)
    # 2 TP + FP + FN: each true and each predicted mask counts once.
    masks = sum(sum(ious.shape) for ious in positive)
    return float((2 * right / masks).mean())


def image_level_mcc(datapoints: Sequence[np.ndarray]) -> float:
    """Matthews' correlation, over datapoints, of having a true mask and having a predicted one."""
    there = np.array([ious.shape[0] > 0 for ious in datapoints])
    predicted = np.array([ious.shape[1] > 0 for ious in datapoints])
    tp, fp = int((there & predicted).sum()), int((~there & predicted).sum())
    fn, tn = int((there & ~predicted).sum()), int((~there & ~predicted).sum())
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0
