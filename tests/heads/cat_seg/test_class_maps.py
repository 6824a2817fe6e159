"""The best class of maps that come in parts."""

from __future__ import annotations

import math

import pytest
import torch

from clipself_seg.heads.cat_seg.class_maps import best_class


@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_number_is_not_hidden_by_other_classes(place):
    scores = torch.tensor([0.2, 0.9, 0.4])
    scores[place] = math.nan
    parts = [(torch.tensor([i]), scores[i].expand(1, 2, 3)) for i in range(3)]
    labels, best = best_class(parts, (2, 3))
    assert best.isnan().all() and labels.eq(place).all()


def test_the_first_of_equal_classes_wins():
    parts = [(torch.tensor([i]), torch.full((1, 2, 3), 0.5)) for i in (1, 3)]
    labels, best = best_class(parts, (4, 6))
    assert labels.eq(1).all() and best.eq(0.5).all()
