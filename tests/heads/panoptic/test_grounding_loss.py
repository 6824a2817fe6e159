"""The grounding loss against a loop over images, captions and words."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from clipself_seg.heads.panoptic.grounding_loss import caption_lengths, grounding_loss
from tests.two_processes import in_two_processes

SCALE = torch.tensor(14.0)


def plain(embeddings, words, valid) -> torch.Tensor:
    count = len(valid)
    scores = torch.zeros(count, count)
    for i in range(count):
        for j in range(count):
            for word in words[j]:
                fits = SCALE * torch.cosine_similarity(embeddings[i], word[None], dim=-1)
                scores[i, j] += (fits.softmax(0) * fits).sum() / len(words[j])
    kept = [i for i, good in enumerate(valid.tolist()) if good]
    rows = sum(F.cross_entropy(scores[i], torch.tensor(i)) for i in kept)
    columns = sum(F.cross_entropy(scores[:, i], torch.tensor(i)) for i in kept)
    return 0.5 * (rows / len(kept) + columns / count)


def test_same_as_a_loop():
    embeddings, words = torch.randn(4, 7, 8), torch.randn(4, 3, 8)
    for valid in (torch.ones(4).bool(), torch.tensor([True, False, True, True])):
        loss = grounding_loss(embeddings, words, valid, SCALE)
        torch.testing.assert_close(loss, plain(embeddings, words, valid))


def test_a_pair_without_words_competes_and_divides_the_captions_terms_alone():
    # Two queries that are one unit vector score tau * cos, whatever the softmax: S is the identity.
    embeddings = torch.eye(2)[:, None].expand(2, 2, 2)
    words = torch.eye(2)[:, None]
    loss = grounding_loss(embeddings, words, torch.tensor([True, False]), torch.tensor(1.0))
    term = math.log(1 + math.exp(-1))  # -log softmax([1, 0])[0]
    torch.testing.assert_close(loss, torch.tensor(0.5 * (term / 1 + term / 2)))


def test_captions_of_their_own_image_cost_less():
    words = torch.randn(4, 3, 8)
    embeddings = torch.cat([words, torch.randn(4, 5, 8)], dim=1)
    valid = torch.ones(4).bool()
    right = grounding_loss(embeddings, words, valid, SCALE)
    assert right < grounding_loss(embeddings.roll(1, 0), words, valid, SCALE)


def test_without_a_valid_caption_the_loss_is_zero_and_has_gradients():
    embeddings, words = (torch.randn(2, n, 8).requires_grad_() for n in (5, 3))
    loss = grounding_loss(embeddings, words, torch.zeros(2).bool(), SCALE)
    loss.backward()
    assert loss == 0 and embeddings.grad is not None and not words.grad.any()


def test_captions_of_all_processes_compete(tmp_path):
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(4, 7, 8, generator=generator), torch.randn(4, 3, 8, generator=generator)
    valid = torch.tensor([False, False, True, True])  # none in the first process

    def work(rank=0, folder=None, batch=2):
        own = slice(batch * rank, batch * rank + batch)
        embeddings, words = (part[own].clone().requires_grad_() for part in parts)
        scale = SCALE.clone().requires_grad_()
        lengths = caption_lengths(
            [["word"] * 3 * good for good in valid[own].tolist()], scale.device
        )
        loss = grounding_loss(embeddings, words, lengths > 0, scale)
        loss.backward()
        results = (loss.detach(), embeddings.grad, words.grad, scale.grad, lengths)
        return dict(zip(("loss", "embeddings", "words", "scale", "lengths"), results))

    first, second = in_two_processes(work, tmp_path)
    whole = work(batch=4)
    for name in ("loss", "scale"):
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], whole[name])
    for name in ("embeddings", "words"):
        # The sum over both: the mean over processes, which comes behind, makes it the whole's.
        together = torch.cat([first[name], second[name]]) / 2
        torch.testing.assert_close(together, whole[name])
    assert first["lengths"].tolist() == second["lengths"].tolist() == [0, 0, 3, 3]
