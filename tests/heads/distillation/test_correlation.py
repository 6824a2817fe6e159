"""Losses of correlations by hand, against loops, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.heads.distillation.correlation import (
    coherence_loss,
    context_loss,
    cosine_similarities,
    spatial_correlation_loss,
)

E1, E2 = (1.0, 0.0), (0.0, 1.0)
# The student tells its third token from the others, the teacher tells none from another.
STUDENT = torch.tensor([[E1, E1, E2]])
ALIKE = torch.tensor([[(0.0, 3.0), (0.0, 1.0), (0.0, 2.0)]])


def matrices(student, target):
    return cosine_similarities(student), cosine_similarities(target)


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_matrices(loss):
    """A loss of similarity matrices as one of tokens."""
    return lambda student, target, valid=None: loss(*matrices(student, target), valid)


def scd(student, target, valid=None):
    return spatial_correlation_loss(student, target, 0.2, valid)


LOSSES = {
    "coherence": of_matrices(coherence_loss),
    "context": of_matrices(context_loss),
    "spatial correlation": scd,
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def test_cosines_of_vectors_whose_angles_are_known():
    given = torch.tensor([[(2.0, 0.0), (3.0, 3.0), (0.0, -1.0), (0.0, 0.0)]])
    half = 0.5**0.5
    expected = [[1, half, 0, 0], [half, 1, -half, 0], [0, -half, 1, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(cosine_similarities(given), torch.tensor([expected]))


def test_coherence_by_hand():
    # Four of nine cosines are 0 where the teacher has 1.
    loss = coherence_loss(*matrices(STUDENT, ALIKE))
    torch.testing.assert_close(loss, torch.tensor([4 / 9]))


def test_context_by_hand():
    # Rows differ by (0, 0, 1), (0, 0, 1) and (1, 1, 0).
    loss = context_loss(*matrices(STUDENT, ALIKE))
    torch.testing.assert_close(loss, torch.tensor([(1 + 1 + 2**0.5) / 3]))


def test_spatial_correlation_by_hand():
    # All rows of the student are (1, 0) once they are scaled, whatever the angle: so are the teacher's.
    student = torch.tensor([[E1, (1.0, 1.0)]])
    target = torch.tensor([[E1, (-1.0, 4.0)]])
    own = 1 / (1 + math.exp(-5))  # softmax of 1 / 0.2 and 0
    entropy = -own * math.log(own) - (1 - own) * math.log(1 - own)
    torch.testing.assert_close(scd(student, target), torch.tensor([entropy]))
    # A teacher whose three tokens have nothing in common, a student whose first two are equal.
    apart = torch.eye(3)[None]
    weight = 1 / (math.exp(5) + 2)  # chance of each other token
    first = -(math.exp(5) * weight + weight) * math.log(math.exp(5) / (2 * math.exp(5) + 1))
    first -= weight * math.log(1 / (2 * math.exp(5) + 1))
    last = -math.exp(5) * weight * math.log(math.exp(5) * weight) - 2 * weight * math.log(weight)
    expected = torch.tensor([(2 * first + last) / 3])
    torch.testing.assert_close(scd(STUDENT, apart), expected)


def naive(name, student, target):
    """The loss of one image, token by token."""
    rows = range(len(student))
    cos = [
        torch.stack(
            [torch.stack([F.cosine_similarity(t[i], t[j], dim=0) for j in rows]) for i in rows]
        )
        for t in (student, target)
    ]
    own, theirs = cos
    if name == "coherence":
        return sum((own[i, j] - theirs[i, j]) ** 2 for i in rows for j in rows) / len(rows) ** 2
    if name == "context":
        return sum((own[i] - theirs[i]).norm() for i in rows) / len(rows)
    loss = 0
    for i in rows:
        scaled = [(c[i] - c[i].min()) / (c[i].max() - c[i].min() + 1e-10) / 0.2 for c in cos]
        loss -= sum(scaled[1].softmax(0)[j] * scaled[0].log_softmax(0)[j] for j in rows)
    return loss / len(rows)


@each_loss
def test_loss_is_that_of_a_loop_over_tokens(name):
    student, target = tokens(2, 5, 3), tokens(2, 5, 4, seed=1)
    expected = torch.stack([naive(name, s, t) for s, t in zip(student, target)])
    torch.testing.assert_close(LOSSES[name](student, target), expected)


@each_loss
def test_tokens_that_do_not_count_are_as_if_they_were_not_there(name):
    student, target = tokens(2, 6, 3).requires_grad_(), tokens(2, 6, 4, seed=1)
    valid = torch.tensor([[True, False, True, True, False, False], [True] * 6])
    loss = LOSSES[name](student, target, valid)
    kept = student[:1, valid[0]], target[:1, valid[0]]
    torch.testing.assert_close(loss[:1], LOSSES[name](*kept))
    torch.testing.assert_close(loss[1:], LOSSES[name](student[1:], target[1:]))
    loss.sum().backward()
    assert student.grad.isfinite().all() and not student.grad[0, ~valid[0]].any()


@pytest.mark.parametrize("name", ["coherence", "context"])
def test_gradients_are_those_of_finite_differences(name):
    target, valid = tokens(2, 4, 2, seed=1), torch.tensor([[True] * 4, [True, True, True, False]])
    student = tokens(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, target, valid), student)


def test_spatial_correlation_holds_the_second_of_two_tokens_still():
    target, student = tokens(1, 4, 2, seed=1), tokens(1, 4, 3).requires_grad_()
    still = F.normalize(student.detach(), dim=2)

    def of_the_first(own):
        rows = F.normalize(own, dim=2) @ still.mT
        scaled = (rows - rows.amin(2, keepdim=True)) / (rows.amax(2, True) - rows.amin(2, True))
        theirs = cosine_similarities(target)
        theirs = (theirs - theirs.amin(2, True)) / (theirs.amax(2, True) - theirs.amin(2, True))
        return -((theirs / 0.2).softmax(2) * (scaled / 0.2).log_softmax(2)).sum(2).mean(1)

    assert torch.autograd.gradcheck(of_the_first, student)
    (expected,) = torch.autograd.grad(of_the_first(student).sum(), student)
    (actual,) = torch.autograd.grad(scd(student, target).sum(), student)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


@each_loss
def test_teacher_gets_no_gradient_and_the_length_of_tokens_does_not_matter(name):
    student, target = tokens(1, 5, 3).requires_grad_(), tokens(1, 5, 4, seed=1).requires_grad_()
    loss = LOSSES[name](student, target)
    loss.sum().backward()
    assert target.grad is None
    lengths = torch.tensor([1.0, 2, 0.5, 7, 3]).double()[:, None]
    torch.testing.assert_close(LOSSES[name](lengths * student, lengths * target), loss)


@each_loss
def test_a_student_that_is_its_teacher_has_a_finite_gradient_of_nothing(name):
    student = tokens(1, 5, 3).requires_grad_()
    LOSSES[name](student, student.detach()).sum().backward()
    # Of the cross entropy the entropy is left, which is smallest here.
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-7, rtol=0)


@each_loss
def test_half_precision_is_compared_in_float32_whatever_autocast_says(name):
    student, target = tokens(1, 5, 3).half(), tokens(1, 5, 4, seed=1).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](student, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name](student.float(), target.float()))


@each_loss
def test_a_batch_of_no_images_has_no_losses(name):
    student = torch.zeros(0, 4, 3, requires_grad=True)
    loss = LOSSES[name](student, torch.zeros(0, 4, 2))
    loss.sum().backward()
    assert loss.shape == (0,) and student.grad is not None
