"""Purity of neighbours by hand and by loop."""

from __future__ import annotations

import math

import pytest
import torch

from clipself_seg.evaluation.regions.accuracy import NO_CLASS, neighbour_purity, token_classes


def directions(*degrees):
    """Unit vectors in the plane."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_purity_by_hand():
    # Class 0 at 0, 10 and 100 degrees, class 1 at 90 and 120.
    tokens, classes = directions(0.0, 10, 100, 90, 120), torch.tensor([0, 0, 0, 1, 1])
    # Two nearest of class 0: (10, 90), (0, 90), (90, 120) -> 1/2, 1/2, 0. One nearest of class 1: 100, 100 -> 0, 0.
    assert neighbour_purity(tokens, classes) == pytest.approx(
        ((1 / 3 + 0) / 2, (2 / 4 + 1 / 4) / 2)
    )


def test_groups_that_lie_apart_are_pure_whatever_their_sizes_and_lengths():
    tokens = directions(0.0, 1, 2, 3, 4, 5, 90, 91, 180) * torch.arange(1.0, 10)[:, None]
    purity, chance = neighbour_purity(tokens, torch.tensor([5] * 6 + [2] * 2 + [7]))
    assert purity == 1 and chance == pytest.approx((5 / 8 + 1 / 8) / 2)


def test_purity_is_that_of_a_loop_over_tokens():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(40, 6, generator=generator)
    classes = torch.randint(-1, 4, (40,), generator=generator)
    each = {}
    for i in range(40):
        others = [j for j in range(40) if j != i and classes[j] != NO_CLASS]
        others.sort(key=lambda j: -torch.cosine_similarity(tokens[i], tokens[j], dim=0).item())
        same = sum(int(classes[j] == classes[i]) for j in others)
        right = sum(int(classes[j] == classes[i]) for j in others[:same])
        if classes[i] != NO_CLASS:
            each.setdefault(int(classes[i]), []).append(right / same)
    expected = sum(sum(values) / len(values) for values in each.values()) / len(each)
    assert neighbour_purity(tokens, classes).purity == pytest.approx(expected)


@pytest.mark.parametrize("classes", [[], [3, 3, 3], [0, 1, 2], [NO_CLASS] * 3, [NO_CLASS, 1, 1]])
def test_an_image_with_nothing_to_tell_apart_has_no_purity(classes):
    grouping = neighbour_purity(torch.randn(len(classes), 2), torch.tensor(classes).long())
    assert math.isnan(grouping.purity) and math.isnan(grouping.chance)


def test_tokens_of_no_region_or_of_two_classes_have_none():
    masks = torch.zeros(3, 1, 5, dtype=torch.bool)
    masks[0, 0, :2] = True
    masks[1, 0, 1:4] = True
    masks[2, 0, 3] = True
    # The first two are of different classes, the last two of one.
    classes = token_classes(masks, torch.tensor([4, 0, 0]))
    assert classes.tolist() == [[4, NO_CLASS, 0, 0, NO_CLASS]]
    assert (token_classes(masks[:0], torch.zeros(0).long()) == NO_CLASS).all()
