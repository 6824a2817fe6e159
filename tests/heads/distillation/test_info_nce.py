"""InfoNCE against open_clip's, and where captions are equal or of several processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss

from clipself_seg.heads.distillation.info_nce import info_nce_loss
from tests.two_processes import in_two_processes

SCALE = torch.tensor(14.0)
TOKENS = torch.arange(12).reshape(6, 2)


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, texts = (3 * torch.randn(6, 8, generator=generator) for _ in range(2))
    return images.requires_grad_(), texts.requires_grad_()


def test_distinct_captions_have_open_clips_loss_and_gradients():
    results = []
    for loss_of in (
        lambda images, texts: info_nce_loss(images, texts, TOKENS, SCALE),
        lambda images, texts: ClipLoss()(
            F.normalize(images, dim=-1), F.normalize(texts, dim=-1), SCALE
        ),
    ):
        images, texts = embeddings()
        loss = loss_of(images, texts)
        loss.backward()
        results.append((loss.detach(), images.grad, texts.grad))
    torch.testing.assert_close(*results)


def test_equal_captions_are_right_for_all_of_their_images():
    # Two images of one caption and one of another: a perfect model has no loss left.
    images = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    tokens = torch.tensor([[1, 2], [1, 2], [1, 3]])
    assert info_nce_loss(images, images, tokens, torch.tensor(100.0)) < 1e-6
    # One of two captions by hand: two logits 1 for the right ones, 0 for the wrong one.
    loss = info_nce_loss(images, images, tokens, torch.tensor(1.0))
    e = torch.tensor(1.0).exp()
    rows = 2 * (2 * e + 1).log() - 2 * (2 * e).log() + (2 + e).log() - 1
    torch.testing.assert_close(loss, rows / 3)  # the matrix is symmetric


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
