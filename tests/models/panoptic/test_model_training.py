"""Training of OpenPanoptic: gradients, losses without targets, words of captions."""

from __future__ import annotations

import pytest
import torch

from tests.models.panoptic.small import model_of, training_samples


def test_training_does_not_know_of_the_weight_of_void():
    totals = []
    for weight in (0, 0.5):
        torch.manual_seed(3)
        losses = model_of("MODEL.FUSION.VOID_DISCOUNT", weight).train()(training_samples())
        totals.append(torch.stack(list(losses.values())))
    assert torch.equal(*totals)


@pytest.mark.parametrize("variant", ["label", "caption"])
def test_everything_that_trains_has_a_gradient_and_clip_has_none(variant):
    model = model_of("MODEL.MASK_GENERATOR.VARIANT", variant).train()
    losses = model(training_samples())
    per_layer = 4 if variant == "caption" else 3
    assert len(losses) == per_layer * 4  # initial queries and three layers
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("clip.", "branch_clip."))
        assert parameter.requires_grad != frozen, name
        assert (parameter.grad is None) == frozen, name
        assert frozen or parameter.grad.isfinite().all(), name
    assert not model.clip.training


def test_words_of_captions_are_not_kept():
    model = model_of("MODEL.MASK_GENERATOR.VARIANT", "caption").train()
    kept = []
    for word in ("apple", "pear"):
        first, second = training_samples()
        model([first, second | {"words": [word, "grass"]}])
        kept.append(len(model.generator_bank._memory))
    assert kept == [0, 0]  # nor is the vocabulary, whose scores nothing learns from


def test_training_without_targets_is_finite():
    model = model_of().train()
    empty = training_samples(1)[0] | {"labels": torch.zeros(0).long()}
    losses = model([empty | {"masks": torch.zeros(0, 64, 64).bool()}])
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
