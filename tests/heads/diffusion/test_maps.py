"""Parts of the diffusion features: captioner, crops of a canvas, and projections of taps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.clip import load_clip
from clipself_seg.heads.diffusion.source import (
    Bottleneck,
    ImplicitCaptioner,
    crop_corners,
    cut_crops,
    embed_crops,
    join_crops,
    project_taps,
    tap_projections,
)

OFFICIAL = (512, 512, 2560, 1920, 960, 640, 512, 512)


@pytest.fixture
def captioner() -> ImplicitCaptioner:
    return ImplicitCaptioner(clip_width=6, text_width=10, time_width=4)


def test_starts_from_the_empty_prompt_and_no_time_term(captioner):
    empty = torch.randn(1, 77, 10)
    prompt, time = captioner(torch.randn(3, 6), empty)
    assert torch.equal(prompt, empty.expand(3, -1, -1))
    assert time.shape == (3, 4) and not time.any()


def test_gates_are_a_tanh_of_their_factors(captioner):
    torch.nn.init.constant_(captioner.alpha_cond, 0.5)
    torch.nn.init.constant_(captioner.alpha_cond_time_embed, -2.0)
    image, empty = torch.randn(2, 6), torch.randn(1, 77, 10)
    prompt, time = captioner(image, empty)
    part = captioner.clip_project
    token = part.linear.weight @ image[1] + part.linear.bias + part.positional_embedding[0, 9]
    torch.testing.assert_close(prompt[1, 9], empty[0, 9] + 0.46211716 * token)
    part = captioner.time_embed_project
    term = part.linear.weight @ image[0] + part.linear.bias + part.positional_embedding[0, 0]
    torch.testing.assert_close(time[0], -0.96402758 * term)


def test_official_size_and_count():
    captioner = ImplicitCaptioner(clip_width=768, text_width=768, time_width=1280)
    assert sum(p.numel() for p in captioner.parameters()) == 1_695_744


@pytest.mark.parametrize("antialias", [False, True])
def test_clip_sees_the_crop_resized_and_normalised(antialias):
    clip, crops = load_clip("ViT-Mini-8", None), torch.rand(2, 3, 128, 128)
    size = (clip.image_size, clip.image_size)
    small = F.interpolate(crops, size, mode="bicubic", antialias=antialias)
    mean, std = (torch.tensor(v)[:, None, None] for v in (clip.mean, clip.std))
    embeddings = embed_crops(clip, crops, antialias)
    torch.testing.assert_close(embeddings, clip.visual((small - mean) / std))
    assert not torch.allclose(embeddings.norm(dim=-1), torch.ones(2), atol=0.01)
    assert not embeddings.requires_grad


@pytest.mark.parametrize(
    "height, width, count",
    [(1024, 1408, 6), (1024, 1536, 6), (1024, 1024, 4), (832, 2560, 10), (512, 512, 1)],
)
def test_counts_of_the_official_canvases(height, width, count):
    assert len(crop_corners(height, width, 512)) == count


def test_the_last_crop_is_shifted_back_inside():
    rows, columns = (0, 512), (0, 512, 896)
    assert crop_corners(1024, 1408, 512) == [(y, x) for y in rows for x in columns]


@pytest.mark.parametrize("size", [(64, 64), (64, 192), (192, 128), (256, 320)])
@pytest.mark.parametrize("stride", [1, 4, 32])
def test_joined_crops_are_the_canvas(size, stride):
    images = torch.rand(2, 3, *size).round(decimals=2)
    corners = crop_corners(*size, 64)
    maps = cut_crops(images, corners, 64)[:, :, ::stride, ::stride]
    joined = join_crops(maps, corners, size, stride)
    torch.testing.assert_close(joined, images[:, :, ::stride, ::stride])


def test_constant_maps_stay_constant_and_overlaps_are_means():
    corners = crop_corners(64, 160, 64)
    assert corners == [(0, 0), (0, 64), (0, 96)]
    maps = torch.tensor([1.0, 2.0, 6.0])[:, None, None, None].expand(3, 5, 2, 2)
    joined = join_crops(maps, corners, (64, 160), 32)
    assert joined.shape == (1, 5, 2, 5)
    assert joined[0, 0, 0].tolist() == [1, 1, 2, 4, 6]
    torch.testing.assert_close(
        join_crops(torch.full((3, 5, 2, 2), 7.0), corners, (64, 160), 32),
        torch.full((1, 5, 2, 5), 7.0),
    )


def test_joining_equals_a_loop_over_cells_and_gradients_are_fractions():
    size, side, stride = (128, 160), 96, 32
    corners = crop_corners(*size, side)
    maps = torch.randn(2 * len(corners), 3, 3, 3, requires_grad=True)
    joined = join_crops(maps, corners, size, stride)
    for image, row, column in ((0, 0, 0), (1, 1, 2), (0, 3, 4), (1, 2, 1)):
        covering = [
            maps[image * len(corners) + i, :, row - y // stride, column - x // stride]
            for i, (y, x) in enumerate(corners)
            if 0 <= row - y // stride < 3 and 0 <= column - x // stride < 3
        ]
        torch.testing.assert_close(joined[image, :, row, column], torch.stack(covering).mean(dim=0))
    (gradient,) = torch.autograd.grad(joined.sum(), maps)
    torch.testing.assert_close(gradient.sum(), torch.tensor(float(joined.numel())))


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
