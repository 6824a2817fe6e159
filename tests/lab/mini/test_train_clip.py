"""Training of the mini CLIP: true captions, a loss that knows about equal ones, and progress."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lab.mini import train_clip
from lab.mini.concepts import WORLDS
from lab.mini.crops import choose_mentions, sample_crops, write_caption
from lab.mini.scenes import draw_scene
from lab.mini.train_clip import TrainSettings, contrastive_loss, learning_rate_at


@pytest.fixture(scope="module")
def crops():
    return train_clip.render_crops(scenes=6, side=64, seed=3, processes=1)


def test_captions_name_only_what_the_crop_shows():
    rng = np.random.default_rng(0)
    colours = {thing.colour for thing in WORLDS["mini"].things}
    for _ in range(5):
        for crop in sample_crops(rng, draw_scene(rng, WORLDS["mini"]), side=32):
            mentions = choose_mentions(rng, crop.things, crop.stuff, crop.subject)
            caption = write_caption(rng, *mentions).replace("black and white", "")
            said = {colour for colour in colours if f"{colour} " in caption}
            assert said <= {thing.colour for thing in crop.things}, caption


def test_crops_are_letterboxed_and_each_shows_something(crops):
    assert all(crop.pixels.shape == (64, 64, 3) for crop in crops)
    assert all(crop.things or crop.stuff for crop in crops)


def test_equal_meanings_share_the_target(crops):
    rng = np.random.default_rng(0)
    texts, targets = train_clip.caption_batch(rng, [crops[0], crops[0], crops[1]])
    assert targets.shape == (3, len(texts))
    torch.testing.assert_close(targets.sum(1), torch.ones(3))


def test_loss_is_the_cross_entropy_when_captions_are_distinct():
    logits = torch.randn(4, 4)
    both = (F.cross_entropy(side, torch.arange(4)) for side in (logits, logits.T))
    torch.testing.assert_close(contrastive_loss(logits, torch.eye(4)), sum(both) / 2)


def test_texts_that_are_true_of_no_crop_are_negatives_only():
    logits = torch.zeros(2, 3)
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    expected = (torch.tensor(3.0).log() + torch.tensor(2.0).log()) / 2
    torch.testing.assert_close(contrastive_loss(logits, targets), expected)


def test_learning_rate_warms_up_and_ends_at_zero():
    settings = TrainSettings(steps=100, warmup=10, learning_rate=1.0)
    assert learning_rate_at(0, settings) == pytest.approx(0.1)
    assert learning_rate_at(10, settings) == pytest.approx(1.0)
    assert learning_rate_at(100, settings) == pytest.approx(0.0)
