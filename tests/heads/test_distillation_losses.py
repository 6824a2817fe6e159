"""Losses of distillation and of training with texts: by hand, against loops, and their gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipself_seg.heads.distillation_losses import (
    coherence_loss,
    concept_contrast,
    context_loss,
    cosine_distance,
    cosine_similarities,
    federated_bce,
    federated_nouns,
    info_nce_loss,
    loss_count,
    noun_cross_entropy,
    noun_logits,
    region_mean,
    spatial_correlation_loss,
    teacher_divergence,
)
from tests.two_processes import in_two_processes

E1, E2 = (1.0, 0.0), (0.0, 1.0)
SCALE = torch.tensor(14.0)
TOKENS = torch.arange(12).reshape(6, 2)


def loss_of(student, teacher, *weighting):
    return region_mean(cosine_distance(student, teacher), *weighting)


def test_average_over_images_gives_each_image_the_same_weight():
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    teacher = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # distances 1, 1, 0
    # An image without regions has no weight.
    for sizes in ([1, 2], [1, 0, 2]):
        loss = loss_of(student, teacher, sizes, "images")
        torch.testing.assert_close(loss, torch.tensor((1 + 1 / 2) / 2))


@pytest.mark.parametrize("average", ["regions", "images"])
def test_mean_over_processes_is_the_loss_of_the_whole_batch(average):
    student, teacher, sizes = torch.randn(9, 4), torch.randn(9, 4), [1, 5, 2, 1]
    whole = loss_of(student, teacher, sizes, average)
    count = (loss_count(sizes[:1], average) + loss_count(sizes[1:], average)) / 2
    parts = [
        loss_of(student[:1], teacher[:1], sizes[:1], average, count),
        loss_of(student[1:], teacher[1:], sizes[1:], average, count),
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_no_regions_give_zero_and_a_gradient_of_zero():
    student = torch.zeros(0, 4, requires_grad=True)
    loss = loss_of(student, torch.zeros(0, 4), [0, 0])
    loss.backward()
    assert loss.item() == 0 and student.grad is not None


def test_teacher_gets_no_gradient_and_length_does_not_matter():
    student = torch.randn(3, 4, requires_grad=True)
    teacher = torch.randn(3, 4, requires_grad=True)
    loss = loss_of(student, teacher, [3])
    loss.backward()
    assert teacher.grad is None
    # Moving along the vector itself changes its length only.
    torch.testing.assert_close((student.grad * student).sum(-1), torch.zeros(3), atol=1e-6, rtol=0)


def test_half_precision_inputs_are_compared_in_float32():
    student, teacher = torch.randn(4, 512), torch.randn(4, 512)
    loss = loss_of(student.half(), teacher.half(), [4])
    assert loss.dtype == torch.float32
    exact = loss_of(student.half().float(), teacher.half().float(), [4])
    torch.testing.assert_close(loss, exact, atol=0, rtol=0)


def matrices(student, target):
    return cosine_similarities(student), cosine_similarities(target)


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_tokens(loss, pairs=None):
    """A loss of tokens, all of which count unless `valid` says otherwise; `pairs` makes of them what it compares."""

    def of_all(student, target, valid=None):
        valid = torch.ones(student.shape[:2], dtype=torch.bool) if valid is None else valid
        return loss(*(pairs(student, target) if pairs else (student, target)), valid)

    return of_all


LOSSES = {
    "coherence": of_tokens(coherence_loss, matrices),
    "context": of_tokens(context_loss, matrices),
    "spatial correlation": of_tokens(spatial_correlation_loss),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


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
    (actual,) = torch.autograd.grad(LOSSES["spatial correlation"](student, target).sum(), student)
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


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, texts = (3 * torch.randn(6, 8, generator=generator) for _ in range(2))
    return images.requires_grad_(), texts.requires_grad_()


def test_half_precision_and_autocast_give_logits_in_float32():
    images, texts = (e.detach().bfloat16() for e in embeddings())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce_loss(images, texts, TOKENS, SCALE)
    expected = info_nce_loss(images.float(), texts.float(), TOKENS, SCALE)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


def test_equal_captions_have_the_loss_and_gradients_of_a_loop():
    names = ["a", "b", "a", "c", "b", "a"]
    tokens = torch.tensor([[ord(name)] for name in names])

    def loop(images, texts):
        scores = (SCALE * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T).exp()
        total = torch.tensor(0.0)
        for i in range(6):
            equal = [j for j in range(6) if names[j] == names[i]]
            for row in (scores[i], scores[:, i]):
                total = total - (row[equal].sum() / row.sum()).log() / 12
        return total

    results = []
    for loss_of in (loop, lambda i, t: info_nce_loss(i, t, tokens, SCALE)):
        images, texts = embeddings()
        loss = loss_of(images, texts)
        loss.backward()
        results.append((loss.detach(), images.grad, texts.grad))
    torch.testing.assert_close(*results)


def test_two_processes_equal_one(tmp_path):
    tokens = TOKENS.clone()
    tokens[4] = tokens[1]  # equal captions in two processes

    def work(rank=0, folder=None, batch=3, gather=True):
        own = slice(batch * rank, batch * rank + batch)
        images, texts = (e[own].detach().requires_grad_() for e in embeddings())
        loss = info_nce_loss(images, texts, tokens[own], SCALE, gather)
        loss.backward()
        alone = info_nce_loss(images, texts, tokens[own], SCALE, gather=False)
        parts = {"images": images.grad, "texts": texts.grad}
        return parts | {"loss": loss.detach(), "alone": alone.detach()}

    first, second = in_two_processes(work, tmp_path)
    whole = work(batch=6)
    assert torch.equal(first["loss"], second["loss"])
    torch.testing.assert_close(first["loss"], whole["loss"])
    for name in ("images", "texts"):
        # The sum over both: the mean over processes, which comes behind, makes it the whole's.
        together = torch.cat([first[name], second[name]]) / 2
        torch.testing.assert_close(together, whole[name])
    assert first["alone"] == work(rank=0)["loss"] != first["loss"]


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
