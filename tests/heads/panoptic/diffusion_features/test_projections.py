"""Projections of the taps: the block by hand, which taps make which map, official sizes and names."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from clipself_seg.heads.diffusion.source import (
    Bottleneck,
    project_taps,
    tap_projections,
)

OFFICIAL = (512, 512, 2560, 1920, 960, 640, 512, 512)


@torch.no_grad()
def test_a_bottleneck_is_three_normed_convolutions_and_a_shortcut():
    for channels in (48, 512):
        block, x = Bottleneck(channels), torch.randn(2, channels, 5, 6)
        y = x
        for convolution, padding in ((block.conv1, 0), (block.conv2, 1), (block.conv3, 0)):
            norm = convolution.norm
            y = F.conv2d(y, convolution.weight, padding=padding)
            y = F.group_norm(y, 32, norm.weight, norm.bias)
            y = y if convolution is block.conv3 else y.clamp(min=0)
        residual = block.shortcut(x) if channels == 48 else x
        torch.testing.assert_close(block(x), (y + residual).clamp(min=0))


def test_official_shapes_and_count():
    with torch.device("meta"):
        projections = tap_projections(OFFICIAL)
    state = {name: tuple(tensor.shape) for name, tensor in projections.state_dict().items()}
    for index, channels in enumerate(OFFICIAL):
        assert state[f"{index}.0.conv1.weight"] == (128, channels, 1, 1)
        assert state[f"{index}.0.conv2.weight"] == (128, 128, 3, 3)
        assert state[f"{index}.0.conv3.norm.bias"] == (512,)
        assert (f"{index}.0.shortcut.norm.weight" in state) == (index in (2, 3, 4, 5))
    assert len(state) == 8 * 9 + 4 * 3
    assert sum(p.numel() for p in projections.parameters()) == 5_873_664


@torch.no_grad()
def test_taps_are_added_by_stride_at_the_nearest_cell():
    projections = tap_projections([8] * 8)
    sides = (16, 8, 1, 2, 4, 8, 8, 16)
    taps = [torch.randn(1, 8, side, side) for side in sides]
    maps = project_taps(projections, taps, 64)
    assert [m.shape[-1] for m in maps.values()] == [16, 8, 4, 2] and list(maps) == [
        "s2",
        "s3",
        "s4",
        "s5",
    ]
    torch.testing.assert_close(maps["s2"], projections[0](taps[0]) + projections[7](taps[7]))
    torch.testing.assert_close(maps["s4"], projections[4](taps[4]))
    three = projections[1](taps[1]) + projections[5](taps[5]) + projections[6](taps[6])
    torch.testing.assert_close(maps["s3"], three)
    enlarged = taps[2].expand(-1, -1, 2, 2)
    torch.testing.assert_close(maps["s5"], projections[2](enlarged) + projections[3](taps[3]))
