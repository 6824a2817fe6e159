"""Matching and losses of masks against transformers' Mask2FormerLoss, at the same random points.

Both draw their points in the same order (layer by layer, the last one first: those of each image's
matching, the candidates for uncertain points, the random ones), so that both need only the same seed.

What transformers does differently on purpose is not compared: its terms come without weights, so
the test multiplies; costs that are not numbers match last, where ours stop the training as those of
Mask2Former do; targets of canvases of different sizes are padded, ours are padded by the mapper.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from clipself_seg.heads.panoptic.mask_losses import (
    LossSettings,
    MaskCriterion,
    MaskTargets,
    draw_points,
    uncertain_points,
)
from clipself_seg.heads.panoptic.matching import TermWeights, match_queries, matching_costs

# None of this is transformers' public interface: setup.cfg says which versions have it.
theirs = pytest.importorskip(
    "transformers.models.mask2former.modeling_mask2former",
    reason="needs transformers (the extra [dev])",
)

CLASSES, QUERIES = 4, 6
ODISE = LossSettings(points=60)
OTHER = LossSettings(TermWeights(1.0, 3.0, 7.0), 0.3, points=50, oversample=2.5, important=0.7)
Layer = tuple[Tensor, Tensor]


def criterion_of_theirs(settings: LossSettings, classes: int):
    config = theirs.Mask2FormerConfig(
        num_labels=classes,
        class_weight=settings.weights.classes,
        mask_weight=settings.weights.mask,
        dice_weight=settings.weights.dice,
        no_object_weight=settings.void_weight,
        train_num_points=settings.points,
        oversample_ratio=settings.oversample,
        importance_sample_ratio=settings.important,
    )
    return theirs.Mask2FormerLoss(config, weight_dict={})


def targets(*counts: int) -> list[MaskTargets]:
    """Random segments on a canvas of 32 x 48, overlapping as they like."""
    return [
        MaskTargets(torch.randint(CLASSES, (count,)), torch.rand(count, 32, 48) > 0.6)
        for count in counts
    ]


def layers(count: int, batch: int, classes: int = CLASSES) -> list[Layer]:
    """Class logits with void, and mask logits of stride 4, that learn."""
    shapes = (batch, QUERIES, classes + 1), (batch, QUERIES, 8, 12)
    return [tuple(2 * torch.randn(shape) for shape in shapes) for _ in range(count)]


def losses_of_theirs(
    predictions: list[Layer], wanted: list[MaskTargets], settings: LossSettings, classes: int
) -> dict[str, Tensor]:
    """With the weights and under the names of ours."""
    *earlier, (class_logits, mask_logits) = predictions
    losses = criterion_of_theirs(settings, classes)(
        mask_logits,
        class_logits,
        # They sample masks as they are given, and booleans cannot be.
        [one.masks.float() for one in wanted],
        # Without classes, everything is the first one.
        [one.labels % classes for one in wanted],
        [{"class_queries_logits": c, "masks_queries_logits": m} for c, m in earlier],
    )
    weights = settings.weights
    terms = {
        "loss_cross_entropy": ("loss_class", weights.classes),
        "loss_mask": ("loss_mask", weights.mask),
        "loss_dice": ("loss_dice", weights.dice),
    }
    return {
        name.replace(term, ours): weight * value
        for term, (ours, weight) in terms.items()
        for name, value in losses.items()
        if name.startswith(term)
    }


def test_default_settings_are_those_of_transformers():
    config, ours = theirs.Mask2FormerConfig(), LossSettings()
    expected = TermWeights(config.class_weight, config.mask_weight, config.dice_weight)
    assert dataclasses.astuple(ours.weights) == dataclasses.astuple(expected) == (2.0, 5.0, 5.0)
    assert ours.void_weight == config.no_object_weight == 0.1
    assert ours.points == config.train_num_points
    assert ours.oversample == config.oversample_ratio
    assert ours.important == config.importance_sample_ratio


@pytest.mark.parametrize("settings", [ODISE, OTHER])
def test_matches_are_the_same(settings):
    # Every count up to more targets than queries, each with its own points.
    wanted = targets(*range(QUERIES + 3))
    ((classes, masks),) = layers(1, len(wanted))
    torch.manual_seed(4)
    matcher = criterion_of_theirs(settings, CLASSES).matcher
    labels = [one.labels for one in wanted]
    expected = matcher(masks, classes, [one.masks for one in wanted], labels)
    torch.manual_seed(4)
    for c, m, one, pair in zip(classes, masks, wanted, expected, strict=True):
        how = one.labels, one.masks, torch.rand(1, settings.points, 2), settings.weights
        (matches,) = match_queries([matching_costs(c, m, *how)])
        assert len(matches[0]) == min(QUERIES, len(one.labels))
        torch.testing.assert_close(matches, pair, atol=0, rtol=0)


@pytest.mark.parametrize("important", [0.0, 0.7, 0.75, 1.0])
@pytest.mark.parametrize(("points", "oversample"), [(50, 3.0), (33, 2.5), (7, 1.0)])
def test_uncertain_points_are_the_same(points, oversample, important):
    settings = LossSettings(points=points, oversample=oversample, important=important)
    logits = torch.randn(5, 8, 12)
    criterion = criterion_of_theirs(settings, CLASSES)
    wanted = targets(5)
    torch.manual_seed(4)
    torch.rand(1, points, 2)  # for the matching
    expected = criterion.sample_points_using_uncertainty(
        logits[:, None], criterion.calculate_uncertainty, points, oversample, important
    )
    torch.manual_seed(4)
    chosen = uncertain_points(logits, draw_points(logits[None], wanted, settings))
    assert chosen.shape == (5, points, 2)
    torch.testing.assert_close(chosen, expected, atol=0, rtol=0)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("settings", [ODISE, OTHER])
# The second image, or all of them, without a target; more targets than queries.
@pytest.mark.parametrize("counts", [(3, 0, 1), (2,), (0, 0), (QUERIES + 2, 4)])
def test_losses_and_gradients_of_every_layer_are_the_same(counts, settings, class_agnostic):
    classes = 1 if class_agnostic else CLASSES
    wanted, predictions = targets(*counts), layers(4, len(counts), classes)
    logits = [one.requires_grad_() for layer in predictions for one in layer]
    criterion = MaskCriterion(class_agnostic=class_agnostic, settings=settings)
    torch.manual_seed(4)
    losses = criterion.losses(predictions, wanted)
    torch.manual_seed(4)
    expected = losses_of_theirs(predictions, wanted, settings, classes)
    assert len(losses) == 12
    torch.testing.assert_close(losses, expected)
    gradients = [torch.autograd.grad(sum(each.values()), logits) for each in (losses, expected)]
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-5)
