"""The feature pyramid on CLIP: strides, channels, what trains."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.clip import load_clip
from clipself_seg.heads.panoptic.pixel_decoder import STRIDES
from clipself_seg.heads.panoptic.pyramid import CLIPPyramid


@pytest.mark.parametrize(("name", "stride"), [("ViT-Mini-8", 8), ("ViT-B-16", 16)])
def test_maps_have_their_strides_and_channels(name, stride):
    pyramid = CLIPPyramid(load_clip(name, None), channels=32)
    assert pyramid.stride == stride and pyramid.channels == dict.fromkeys(STRIDES, 32)
    with torch.no_grad():
        maps = pyramid(torch.rand(2, 3, 64, 96))
    shapes = {n: (2, 32, 64 // s, 96 // s) for n, s in STRIDES.items()}
    assert {n: tuple(m.shape) for n, m in maps.items()} == shapes


def test_a_patch_of_14_is_enlarged_to_a_stride_of_16():
    clip = load_clip("ViT-Mini-8", None)
    pyramid = CLIPPyramid(clip, channels=32)
    assert pyramid.stride == 8
    sizes = []
    clip.visual.patch_size = 7  # as 14 is to 16
    clip.visual.features = lambda x, names: sizes.append(tuple(x.shape)) or dict.fromkeys(
        names, torch.zeros(1, 128, 8, 12)
    )
    pyramid(torch.rand(1, 3, 64, 96))
    assert sizes == [(1, 3, 56, 84)]


def test_blocks_default_to_quarters_of_the_depth():
    clip = load_clip("ViT-B-16", None)
    assert CLIPPyramid(clip).names == ["block2", "block5", "block8", "block11"]
    assert CLIPPyramid(clip, blocks=(1, 7)).names == ["block1", "block7"]


def test_clip_is_not_registered_and_stays_without_gradients():
    clip = load_clip("ViT-Mini-8", None)
    pyramid = CLIPPyramid(clip, channels=32)
    assert not any("clip" in name or "visual" in name for name in pyramid.state_dict())
    sum(m.sum() for m in pyramid(torch.rand(1, 3, 64, 64)).values()).backward()
    assert all(p.grad is not None for p in pyramid.parameters())
    assert all(p.grad is None for p in clip.parameters())


def test_the_stem_sees_what_a_patch_hides():
    pyramid = CLIPPyramid(load_clip("ViT-Mini-8", None), channels=32).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        whole = pyramid(images)
        pyramid.stem[0][0].weight.zero_()
        blind = pyramid(images)
    assert not torch.equal(whole["s2"], blind["s2"]) and torch.equal(whole["s5"], blind["s5"])
