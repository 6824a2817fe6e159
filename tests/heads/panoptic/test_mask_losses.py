"""Losses of the mask generator: by hand, by loop, and without targets."""

from __future__ import annotations

import math

import pytest
import torch

from clipself_seg.heads.panoptic.mask_losses import (
    LossSettings,
    MaskCriterion,
    MaskTargets,
    count_masks,
    draw_points,
    mask_losses,
    uncertain_points,
)
from clipself_seg.heads.panoptic.matching import match_queries, matching_costs, sample_points

FEW = LossSettings(points=64)


def targets(*labels: int, size: int = 16) -> MaskTargets:
    masks = torch.zeros(len(labels), size, size, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[4 * index : 4 * index + 4] = True
    return MaskTargets(torch.tensor(labels, dtype=torch.long), masks)


def test_entropy_and_dice_by_hand():
    # Probabilities 1/2, 1/2 against 1, 0: entropy log 2, dice 1 - (2 * 0.5 + 1) / (1 + 1 + 1).
    entropy, dice = mask_losses(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    assert entropy.item() == pytest.approx(math.log(2)) and dice.item() == pytest.approx(1 / 3)


def test_classification_counts_void_a_tenth_by_hand():
    criterion = MaskCriterion(class_agnostic=False, settings=FEW)
    classes, wanted = torch.randn(1, 3, 5), targets(3, 1)
    masks = 20 * wanted.masks.float() - 10
    masks = torch.cat([masks, torch.full((1, 16, 16), -10.0)])[None]
    losses = criterion.losses([(classes, masks)], [wanted])
    logs = -classes[0].log_softmax(-1)
    expected = (logs[0, 3] + logs[1, 1] + 0.1 * logs[2, 4]) / 2.1
    torch.testing.assert_close(losses["loss_class"], 2 * expected)


def test_class_agnostic_losses_do_not_know_the_labels():
    criterion = MaskCriterion(class_agnostic=True, settings=FEW)
    classes, masks, losses = torch.randn(2, 4, 2), torch.randn(2, 4, 8, 8), []
    for labels in ((3, 1), (0, 7)):
        torch.manual_seed(1)
        losses.append(criterion.losses([(classes, masks)], [targets(*labels), targets(5)]))
    assert losses[0] == losses[1]


def test_same_as_a_loop_over_layers_images_and_masks():
    wanted = [targets(3, 1), targets(2), targets()]
    layers = [(torch.randn(3, 4, 6), torch.randn(3, 4, 8, 8)) for _ in range(3)]
    torch.manual_seed(5)
    losses = MaskCriterion(class_agnostic=False, settings=FEW).losses(layers, wanted)
    torch.manual_seed(5)
    named = dict(zip(("", "_0", "_1"), (layers[2], layers[0], layers[1])))
    for suffix, (classes, masks) in named.items():
        drawn = draw_points(masks, wanted, FEW)
        rows, weight, logs, chosen, truth = [], [], classes.log_softmax(-1), [], []
        for b, one in enumerate(wanted):
            how = one.labels, one.masks, drawn.matching[b], FEW.weights
            (matched,) = match_queries([matching_costs(classes[b], masks[b], *how)])
            pairs = dict(zip(*(m.tolist() for m in matched)))
            for q in range(4):
                label = int(one.labels[pairs[q]]) if q in pairs else 5
                weight.append(1.0 if q in pairs else 0.1)
                rows.append(-weight[-1] * logs[b, q, label])
            chosen += [masks[b, q] for q in pairs]
            truth += [one.masks[t] for t in pairs.values()]
        points, entropy, dice = uncertain_points(torch.stack(chosen), drawn), 0.0, 0.0
        for logits, mask, where in zip(chosen, truth, points):
            x, t = (sample_points(m[None], where[None])[0] for m in (logits, mask))
            p = x.sigmoid()
            entropy -= (t * p.log() + (1 - t) * (1 - p).log()).mean() / 3
            dice += (1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)) / 3
        torch.testing.assert_close(losses[f"loss_class{suffix}"], 2 * sum(rows) / sum(weight))
        torch.testing.assert_close(losses[f"loss_mask{suffix}"], 5 * entropy)
        torch.testing.assert_close(losses[f"loss_dice{suffix}"], 5 * dice)
    assert len(losses) == 9


def test_without_targets_only_void_is_learned_and_nothing_lacks_a_gradient():
    criterion = MaskCriterion(class_agnostic=False, settings=FEW)
    classes, masks = (torch.randn(2, 4, *s).requires_grad_() for s in ((6,), (8, 8)))
    losses = criterion.losses([(classes, masks)], [targets(), targets()])
    assert losses["loss_mask"] == 0 and losses["loss_dice"] == 0 and losses["loss_class"] > 0
    sum(losses.values()).backward()
    assert masks.grad is not None and not masks.grad.any() and classes.grad.any()


def test_more_targets_than_queries():
    criterion = MaskCriterion(class_agnostic=True, settings=FEW)
    losses = criterion.losses([(torch.randn(1, 2, 2), torch.randn(1, 2, 8, 8))], [targets(0, 1, 2)])
    assert all(loss.isfinite() for loss in losses.values())


def test_masks_are_counted_over_the_batch_and_never_zero():
    device = torch.device("cpu")
    assert count_masks([targets(1, 2), targets(3)], device) == 3
    assert count_masks([targets()], device) == 1


def test_most_points_lie_where_the_prediction_is_unsure():
    logits = torch.full((2, 32, 32), 8.0)
    logits[0, :, :4] = 0.0  # an eighth of the first map is undecided
    drawn = draw_points(logits[None], [targets(0, 1)], LossSettings(points=400))
    points = uncertain_points(logits, drawn)
    assert points.shape == (2, 400, 2) and points.min() >= 0 and points.max() <= 1
    unsure = (points[0, :, 0] < 5 / 32).float().mean()
    # 1200 candidates bring about 150 undecided ones, and an eighth of the 100 random points.
    assert unsure > 0.3
    assert (points[1, :, 0] < 5 / 32).float().mean() < 0.3
