"""Matching of queries with targets, losses of masks and of words: by hand, and against loops."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipself_seg.heads.panoptic import mask_losses as losses_file
from clipself_seg.heads.panoptic.mask_losses import (
    MaskCriterion,
    MaskTargets,
    caption_lengths,
    count_masks,
    grounding_loss,
    match_queries,
    matching_costs,
)
from tests.conftest import PARITY
from tests.parity.named_weights import named_input
from tests.parity.uniform_numbers import draw
from tests.two_processes import in_two_processes

FEW = 64
SCALE = torch.tensor(14.0)


def test_problems_of_several_shapes_are_each_solved_as_if_alone():
    problems = [torch.randn(shape) for shape in ((5, 3), (5, 0), (2, 4), (3, 3))]
    alone = [match_queries([one])[0] for one in problems]
    for pair, expected in zip(match_queries(problems), alone, strict=True):
        assert all(torch.equal(*both) for both in zip(pair, expected))
        assert len(pair[0]) == len(pair[1])


def test_predictions_that_are_not_finite_are_matched_all_the_same():
    logits = torch.full((3, 4, 4), torch.nan)
    masks = torch.ones(2, 4, 4, dtype=torch.bool)
    where = torch.rand(1, 8, 2)
    costs = matching_costs(torch.zeros(3, 5), logits, torch.tensor([0, 1]), masks, where)
    ((queries, matched),) = match_queries([costs])
    assert len(queries) == len(matched) == 2


def targets(*labels: int, size: int = 16) -> MaskTargets:
    masks = torch.zeros(len(labels), size, size, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[4 * index : 4 * index + 4] = True
    return MaskTargets(torch.tensor(labels, dtype=torch.long), masks)


def test_without_targets_only_void_is_learned_and_nothing_lacks_a_gradient():
    criterion = MaskCriterion(class_agnostic=False, points=FEW)
    classes, masks = (torch.randn(2, 4, *s).requires_grad_() for s in ((6,), (8, 8)))
    losses = criterion.losses([(classes, masks)], [targets(), targets()])
    assert losses["loss_mask"] == 0 and losses["loss_dice"] == 0 and losses["loss_class"] > 0
    sum(losses.values()).backward()
    assert masks.grad is not None and not masks.grad.any() and classes.grad.any()


def test_a_classification_without_classes_takes_every_target_for_the_same():
    layer = torch.randn(1, 4, 2), torch.randn(1, 4, 8, 8)
    found = []
    for agnostic, labels in ((True, (3, 1)), (False, (0, 0))):
        torch.manual_seed(0)
        criterion = MaskCriterion(class_agnostic=agnostic, points=FEW)
        found.append(criterion.losses([layer], [targets(*labels)]))
    assert found[0] == found[1]


def test_masks_are_counted_over_the_batch_and_never_zero():
    device = torch.device("cpu")
    assert count_masks([targets(1, 2), targets(3)], device) == 3
    assert count_masks([targets()], device) == 1


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


PMT = json.loads((PARITY / "pmt_loss.json").read_text())


def pmt_targets() -> list[MaskTargets]:
    targets = []
    for b, n in enumerate(PMT["targets"]):
        low = named_input(f"{PMT['tag']}:target{b}", (max(n, 1), 12, 16))[:n] > 0.4
        masks = low.repeat_interleave(8, 1).repeat_interleave(8, 2)
        if n > 1:
            masks[1] = False
            masks[1, -5:, -7:] = True
        targets.append(MaskTargets((3 * torch.arange(n) + b) % PMT["classes"], masks))
    return targets


def pmt_predictions(targets: list[MaskTargets]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    predictions = []
    for layer in range(PMT["predictions"]):
        masks = named_input(f"{PMT['tag']}:masks{layer}", (3, 14, 24, 32)) * 3
        for b, target in enumerate(targets):
            for i, mask in enumerate(target.masks):
                q = (5 * i + 2 * layer + b) % 14
                small = F.interpolate(mask[None, None].float(), (24, 32), mode="area")[0, 0]
                masks[b, q] = masks[b, q] * 0.5 + small * 6 - 3
        classes = named_input(f"{PMT['tag']}:classes{layer}", (3, 14, 8)) * 2
        predictions.append((classes.requires_grad_(), masks.requires_grad_()))
    return predictions


def test_losses_of_plain_mask_transformers_are_official(monkeypatch):
    expected = np.load(PARITY / "pmt_loss.npz")
    targets = pmt_targets()
    predictions = pmt_predictions(targets)
    matched: list = []
    monkeypatch.setattr(losses_file, "match_queries", collecting(matched))
    # The last prediction's five draws come first here.
    drawn = draw(monkeypatch, PMT["tag"], [*range(10, 15), *range(10)])
    losses = MaskCriterion(class_agnostic=False, points=PMT["points"]).losses(predictions, targets)
    assert [list(drawn[number]) for number in range(15)] == PMT["draw_shapes"]
    total = sum(losses.values())
    assert total.item() == pytest.approx(expected["total_f64"].item(), rel=1e-5)
    ours = {"cross_entropy": ("class", 2), "mask": ("mask", 5), "dice": ("dice", 5)}
    suffixes = {"_block_-2": "_0", "_block_-1": "_1", "": ""}
    for name, value in zip(expected["loss_names"].tolist(), expected["losses_f64"], strict=True):
        term, block, number = name.removeprefix("loss_").partition("_block_")
        own, weight = ours[term]
        found = losses[f"loss_{own}{suffixes[block + number]}"].item() / weight
        assert found == pytest.approx(value, rel=1e-5)
    total.backward()
    for layer, (classes, masks) in enumerate(predictions):
        for b in range(3):
            queries, indices = matched[3 * ((layer + 1) % 3) + b]
            pairs = expected[f"match{layer}_{b}"]
            assert set(zip(queries.tolist(), indices.tolist())) == set(zip(*pairs.tolist()))
        gradient = torch.from_numpy(expected[f"grad_class{layer}"])
        torch.testing.assert_close(classes.grad, gradient, atol=1e-6, rtol=0)
        gradient = torch.from_numpy(expected[f"grad_mask{layer}"])
        torch.testing.assert_close(masks.grad[:, ::2, ::2, ::2], gradient, atol=5e-7, rtol=0)


def collecting(matched: list):
    """`match_queries`, whose results are kept."""

    def match(costs):
        matched.extend(match_queries(costs))
        return matched

    return match
