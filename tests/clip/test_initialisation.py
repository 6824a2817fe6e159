"""Random parameters, and towers whose weights are loaded."""

from __future__ import annotations

import torch
from torch import nn

from clipself_seg.clip.kinds import find_architecture
from clipself_seg.clip.model import DenseCLIP
from clipself_seg.clip.runtime import normal_parameter, without_values


def test_numbers_are_normal_ones_times_their_deviation():
    torch.manual_seed(3)
    parameter = normal_parameter(5, 64, std=0.02)
    torch.manual_seed(3)
    torch.testing.assert_close(parameter.data, 0.02 * torch.randn(5, 64), rtol=0, atol=0)
    assert isinstance(parameter, nn.Parameter)


def test_a_clip_without_values_draws_nothing():
    before = torch.get_rng_state()
    architecture = find_architecture("ViT-Mini-8")
    with without_values():
        clip = DenseCLIP(architecture=architecture, quick_gelu=True)
    assert all(p.is_meta for p in clip.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    assert not nn.init.normal_(torch.zeros(64)).eq(0).any()  # outside all is as it was
