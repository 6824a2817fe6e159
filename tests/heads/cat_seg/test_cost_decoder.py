"""A step of the decoder against its plain formulation."""

from __future__ import annotations

import torch

from clipself_seg.heads.cat_seg.cost_aggregator import UpBlock


@torch.no_grad()
def test_a_step_is_the_transposed_convolution_beside_the_guidance_and_two_convolutions():
    block = UpBlock(channels=12, out_channels=32, guidance_channels=5).double()
    x, guidance = torch.randn(3, 12, 4, 6).double(), torch.randn(5, 8, 12).double()
    step = block(x, block.corner_weight(), block.guidance_contribution(guidance[None]))
    plain = block.conv(torch.cat([block.up(x), guidance.expand(3, -1, -1, -1)], dim=1))
    assert step.shape == (3, 32, 8, 12)
    torch.testing.assert_close(step, plain)
