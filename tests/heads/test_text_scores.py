"""Cosines and class scores by hand, and against loops over cells, masks and names."""

import math

import pytest
import torch

from clipself_seg.heads.fusion import fuse_scores
from clipself_seg.heads.text_scores import (
    class_logits,
    class_maxima,
    class_probabilities,
    cosine_cost,
    members_of,
    only_classes,
)

NAMES = (("cat",), ("dog", "puppy", "hound"), ("grass", "lawn"))
TEN = torch.tensor(10.0)


def test_cosines_under_autocast_are_those_of_float32():
    dense, text = torch.randn(64, 5, 7), torch.randn(9, 2, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = cosine_cost(dense, text)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cosine_cost(dense, text), atol=1e-6, rtol=0)


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


def test_what_is_no_number_is_not_hidden_by_another_name():
    numbers = torch.tensor([0.2, math.nan, 0.4])[:, None, None]
    best = class_maxima(numbers, torch.tensor([[0, 1], [2, 2]]))
    assert best.isnan().flatten().tolist() == [True, False]


def test_scores_of_half_precision_are_full():
    dense, text = torch.randn(4, 2, 2).half(), torch.randn(3, 4)
    scores = class_probabilities(dense, text, members_of((("a",), ("b",), ("c",))), 40.0)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.sum(0), torch.ones(2, 2))


def test_the_best_synonym_of_a_class_counts_by_hand():
    texts = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    regions = torch.tensor([[2.0, 0.0], [-3.0, 4.0], [0.0, 0.0]])
    expected = torch.tensor([[10.0, 0.0], [-6.0, 8.0], [0.0, 0.0]])
    torch.testing.assert_close(class_logits(regions, texts, [1, 2], TEN), expected)


def test_same_as_a_loop_over_classes():
    regions, texts, synonyms = (torch.randn(2, 7, 16), torch.randn(9, 16), [1, 4, 2, 1, 1])
    cosines = torch.nn.functional.cosine_similarity(regions[:, :, None], texts, dim=-1)
    expected = torch.stack([part.amax(-1) for part in cosines.split(synonyms, -1)], dim=-1)
    torch.testing.assert_close(class_logits(regions, texts, synonyms, TEN), 10 * expected)


def test_gradient_goes_to_the_best_synonym_alone():
    texts = torch.tensor([[1.0, 1.0], [1.0, -2.0], [0.0, 1.0]], requires_grad=True)
    class_logits(torch.tensor([[1.0, 0.5]]), texts, [2, 1], TEN).sum().backward()
    assert texts.grad is not None
    assert (texts.grad.abs().sum(1) > 0).tolist() == [True, False, True]


def test_no_queries():
    assert class_logits(torch.zeros(0, 4), torch.randn(3, 4), [2, 1], TEN).shape == (0, 2)


def test_only_some_classes_have_the_probabilities_of_a_short_vocabulary():
    logits, clip = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    void, seen = torch.rand(5).double(), torch.tensor([True, False, True, False])
    kept = [1, 2]
    probabilities = fuse_scores(
        only_classes(logits, kept), only_classes(clip, kept), void, seen, 0.3, 0.6
    )
    short = fuse_scores(logits[:, kept], clip[:, kept], void, seen[kept], 0.3, 0.6)
    torch.testing.assert_close(probabilities[:, [*kept, 4]], short)
    assert not probabilities[:, [0, 3]].any()
