"""The losses of region-text training as formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipself_seg.heads.distillation.region_text import (
    concept_contrast,
    federated_bce,
    federated_nouns,
    noun_cross_entropy,
    noun_logits,
    pseudo_labels,
    teacher_divergence,
)

# Three boxes and five nouns; the third box has the first one's noun.
LOGITS = torch.tensor(
    [[2.0, -1.0, 0.5, 3.0, 0.0], [0.0, 1.0, -2.0, 0.25, 4.0], [-1.0, 0.0, 1.5, 2.0, -3.0]],
    dtype=torch.float64,
)
LABELS = torch.tensor([3, 1, 3])


def softplus(x):
    return math.log1p(math.exp(x))


def test_logits_are_cosines_times_the_scale_and_zeros_of_nothing():
    regions = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    logits = noun_logits(regions, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]]), 10.0)
    torch.testing.assert_close(logits, torch.tensor([[6.0, 8.0, 9.6], [0, 0, 0]]))


def test_logits_are_float32_in_autocast_and_of_half_inputs():
    regions, nouns = torch.randn(2, 64), F.normalize(torch.randn(3, 64), dim=-1)
    exact = noun_logits(regions, nouns, 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(noun_logits(regions, nouns, 100.0), exact)
    half = noun_logits(regions.half(), nouns, 100.0)
    assert half.dtype == torch.float32
    assert torch.equal(half, noun_logits(regions.half().float(), nouns, 100.0))


def test_official_loss_of_three_boxes_and_four_of_five_nouns():
    nouns = torch.tensor([0, 1, 3, 4])
    rows = [
        softplus(2) + softplus(-1) + softplus(-3) + softplus(0),
        softplus(0) + softplus(-1) + softplus(0.25) + softplus(4),
        softplus(-1) + softplus(0) + softplus(-2) + softplus(-3),
    ]
    loss = federated_bce(LOGITS, LABELS, nouns)
    torch.testing.assert_close(loss, torch.tensor(rows, dtype=torch.float64), atol=1e-12, rtol=0)


def test_with_one_noun_the_official_loss_is_that_of_its_sigmoid():
    logits, labels = torch.tensor([[2.0], [-1.0]]).double(), torch.tensor([0, 0])
    nouns = torch.from_numpy(federated_nouns(labels.numpy(), 1, 100, np.random.default_rng(0)))
    assert nouns.tolist() == [0]
    expected = torch.tensor([softplus(-2), softplus(1)]).double()
    torch.testing.assert_close(federated_bce(logits, labels, nouns), expected)
    assert noun_cross_entropy(logits, labels).tolist() == [0, 0]
    assert concept_contrast(logits, labels).tolist() == [0, 0]


def test_softmax_over_all_nouns():
    sums = LOGITS.exp().sum(1).log()
    expected = sums - torch.tensor([3.0, 1.0, 2.0]).double()
    torch.testing.assert_close(noun_cross_entropy(LOGITS, LABELS), expected)


def test_contrast_sums_the_probabilities_of_boxes_with_one_noun():
    rows = [
        math.log(2 * math.exp(3) + math.exp(-1)) - math.log(2 * math.exp(3)),
        math.log(2 * math.exp(0.25) + math.exp(1)) - 1,
        math.log(2 * math.exp(2) + math.exp(0)) - math.log(2 * math.exp(2)),
    ]
    expected = torch.tensor(rows).double()
    torch.testing.assert_close(concept_contrast(LOGITS, LABELS), expected)


def test_divergence_from_the_teacher():
    student = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()
    teacher = torch.tensor([[math.log(3), 0.0], [5.0, 5.0]]).double().requires_grad_()
    loss = teacher_divergence(student.requires_grad_(), teacher)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    torch.testing.assert_close(loss, torch.tensor([expected, 0.0]).double())
    loss.sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize("loss", [federated_bce, noun_cross_entropy, concept_contrast])
def test_gradients_are_those_of_differences(loss):
    more = (torch.tensor([0, 1, 3]),) if loss is federated_bce else ()
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, LABELS, *more), (logits,))


def test_no_boxes_have_no_loss_and_a_gradient():
    regions = torch.zeros(0, 4, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.long)
    logits = noun_logits(regions, torch.eye(4), 100.0)
    nouns = torch.from_numpy(federated_nouns(labels.numpy(), 4, 3, np.random.default_rng(0)))
    for values in (
        federated_bce(logits, labels, nouns),
        noun_cross_entropy(logits, labels),
        concept_contrast(logits, labels),
        teacher_divergence(logits, logits),
    ):
        assert values.shape == (0,)
        values.sum().backward(retain_graph=True)
    assert len(nouns) == 3 and regions.grad is not None


def test_nouns_are_the_boxes_own_topped_up_without_repetition():
    own = np.array([7, 2, 7])
    drawn = [federated_nouns(own, 20, 6, np.random.default_rng((0, step))) for step in range(30)]
    for nouns in drawn:
        assert len(set(nouns.tolist())) == len(nouns) == 6
        assert {2, 7} <= set(nouns.tolist()) <= set(range(20))
        assert nouns.tolist() == sorted(nouns)
    assert set(np.concatenate(drawn).tolist()) == set(range(20))
    again = federated_nouns(own, 20, 6, np.random.default_rng((0, 3)))
    assert again.tolist() == drawn[3].tolist() != drawn[4].tolist()


def test_more_own_nouns_than_asked_for_are_all_there_and_no_more_than_exist():
    rng = np.random.default_rng(0)
    assert federated_nouns(np.arange(5), 9, 3, rng).tolist() == [0, 1, 2, 3, 4]
    assert federated_nouns(np.array([1]), 4, 100, rng).tolist() == [0, 1, 2, 3]


def test_pseudo_labels_are_the_best_candidates_with_their_probability_among_all_nouns():
    logits = torch.tensor([[1.0, 3.0, 3.0], [0.0, 2.0, 1.0], [1.0, 0.0, 0.0]])
    labels, scores = pseudo_labels(logits)
    assert labels.tolist() == [1, 1, 0]
    torch.testing.assert_close(scores, logits.softmax(1).amax(1))
    candidates = torch.tensor([[True, False, True], [True, False, True], [False, False, False]])
    labels, scores = pseudo_labels(logits, candidates)
    assert labels.tolist() == [2, 2, -1]
    expected = torch.stack([logits[0].softmax(0)[2], logits[1].softmax(0)[2], torch.tensor(0.0)])
    torch.testing.assert_close(scores, expected)
    labels, scores = pseudo_labels(logits[:0])
    assert labels.shape == scores.shape == (0,)
