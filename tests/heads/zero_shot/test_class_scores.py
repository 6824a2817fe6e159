"""Probabilities of classes by hand, and against loops over cells and names."""

from __future__ import annotations

import math

import pytest
import torch

from clipself_seg.heads.zero_shot.class_scores import class_maxima, class_probabilities, members_of

NAMES = (("cat",), ("dog", "puppy", "hound"), ("grass", "lawn"))


def test_two_cells_and_two_names_by_hand():
    dense = torch.tensor([[2.0, 0.0], [0.0, 5.0]])[
        :, None
    ]  # cells (1, 0) and (0, 1), of any length
    text = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    apart = class_probabilities(dense, text, torch.tensor([[0], [1]]), math.log(3))
    torch.testing.assert_close(apart, torch.tensor([[[0.75, 0.25]], [[0.25, 0.75]]]))
    # Both names are those of one class: the better one counts, and they are not added.
    together = class_probabilities(dense, text, torch.tensor([[0, 1]]), math.log(3))
    torch.testing.assert_close(together, torch.tensor([[[0.75, 0.75]]]))


def test_a_class_with_fewer_names_repeats_its_first():
    assert members_of(NAMES).tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 4]]
    assert members_of((("a",),)).tolist() == [[0]]


def test_scores_are_those_of_loops_over_cells_and_names():
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(5, 2, 3, dtype=torch.float64, generator=generator)
    text = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    scores = class_probabilities(dense, text, members_of(NAMES), 7.0)
    for y in range(2):
        for x in range(3):
            cell = dense[:, y, x]
            exponentials = [
                math.exp(7 * float(cell @ name / (cell.norm() * name.norm()))) for name in text
            ]
            of_names = iter(e / sum(exponentials) for e in exponentials)
            for label, synonyms in enumerate(NAMES):
                best = max(next(of_names) for _ in synonyms)
                assert float(scores[label, y, x]) == pytest.approx(best, rel=1e-12)


def test_more_names_of_other_classes_lower_a_score_and_names_of_its_own_never_help_twice():
    dense, text = torch.ones(2, 1, 1), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    one = class_probabilities(dense, text, members_of((("a", "b"), ("c",))), 1.0)
    torch.testing.assert_close(one, torch.full((2, 1, 1), 1 / 3))


def test_one_class_is_certain_everywhere():
    scores = class_probabilities(
        torch.randn(4, 3, 2), torch.randn(1, 4), members_of((("a",),)), 40.0
    )
    assert scores.shape == (1, 3, 2) and scores.eq(1).all()


def test_what_is_no_number_is_not_hidden_by_another_name():
    numbers = torch.tensor([0.2, math.nan, 0.4])[:, None, None]
    assert class_maxima(numbers, torch.tensor([[0, 1], [2, 2]])).isnan().flatten().tolist() == [
        True,
        False,
    ]


def test_scores_of_half_precision_are_full():
    dense, text = torch.randn(4, 2, 2).half(), torch.randn(3, 4)
    scores = class_probabilities(dense, text, members_of((("a",), ("b",), ("c",))), 40.0)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.sum(0), torch.ones(2, 2))
