"""The implicit captioner: where it starts, what it computes, and what CLIP sees of a crop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.clip import load_clip
from clipself_seg.heads.diffusion.captioner import ImplicitCaptioner, embed_crops


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
