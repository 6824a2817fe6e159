"""Pooling under masks and the embedding that is made of it."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.heads.panoptic.query_decoder import PooledMaskEmbed, pool_masks


def test_means_over_positive_pixels_by_hand():
    features = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 1, 2, 2)
    masks = torch.tensor([[[1.0, -1.0], [0.1, 0.0]], [[-1.0, -1.0], [-1.0, 0.0]]])[None]
    # A logit of zero, a probability of one half, is outside; an empty mask pools to zero.
    assert pool_masks(features, masks).flatten().tolist() == pytest.approx([2.0, 0.0])


def test_masks_get_no_gradient_and_features_do():
    features, masks = (torch.randn(1, n, 3, 3).requires_grad_() for n in (4, 2))
    module = PooledMaskEmbed(4)
    module(torch.randn(1, 2, 4), features, masks).square().sum().backward()
    assert masks.grad is None and features.grad is not None and features.grad.abs().sum() > 0


def test_first_temperature_is_that_of_clip():
    assert PooledMaskEmbed(4).scale.item() == pytest.approx(1 / 0.07)
