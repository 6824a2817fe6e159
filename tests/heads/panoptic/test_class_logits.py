"""Class logits: cosines, and the best synonym of a class."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.errors import InputError
from clipself_seg.heads.fusion import fuse_scores
from clipself_seg.heads.panoptic.class_logits import (
    class_logits,
    only_classes,
    similarity_scale,
)

TEN = torch.tensor(10.0)


def test_the_best_synonym_of_a_class_counts_by_hand():
    texts = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    regions = torch.tensor([[2.0, 0.0], [-3.0, 4.0], [0.0, 0.0]])
    expected = torch.tensor([[10.0, 0.0], [-6.0, 8.0], [0.0, 0.0]])
    torch.testing.assert_close(class_logits(regions, texts, [1, 2], TEN), expected)


def test_same_as_a_loop_over_classes():
    regions, texts, synonyms = (
        torch.randn(2, 7, 16),
        torch.randn(9, 16),
        [1, 4, 2, 1, 1],
    )
    cosines = torch.nn.functional.cosine_similarity(regions[:, :, None], texts, dim=-1)
    expected = torch.stack([part.amax(-1) for part in cosines.split(synonyms, -1)], dim=-1)
    torch.testing.assert_close(class_logits(regions, texts, synonyms, TEN), 10 * expected)


def test_gradient_goes_to_the_best_synonym_alone():
    texts = torch.tensor([[1.0, 1.0], [1.0, -2.0], [0.0, 1.0]], requires_grad=True)
    class_logits(torch.tensor([[1.0, 0.5]]), texts, [2, 1], TEN).sum().backward()
    assert texts.grad is not None
    assert (texts.grad.abs().sum(1) > 0).tolist() == [True, False, True]


def test_no_queries():
    assert class_logits(torch.zeros(0, 4), torch.randn(3, 4), [2, 1], TEN).shape == (
        0,
        2,
    )


def test_scale_has_a_ceiling():
    assert similarity_scale(torch.tensor(9.0)) == 100
    assert similarity_scale(torch.tensor(2.0)) == pytest.approx(7.389056)


@pytest.mark.parametrize("synonyms", [[1, 1], [3, 0], []])
def test_counts_that_do_not_fit_the_texts_are_refused(synonyms):
    with pytest.raises(InputError, match="3 texts for"):
        class_logits(torch.randn(2, 4), torch.randn(3, 4), synonyms, TEN)


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
    assert only_classes(logits, []) is logits
