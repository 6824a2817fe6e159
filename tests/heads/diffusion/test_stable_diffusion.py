"""Stable Diffusion's taps against its networks as a whole."""

from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.heads.diffusion.stable_diffusion import (
    SMALL,
    StableDiffusion,
    StableDiffusionSizes,
    build_unet,
    build_vae,
    decoder_taps,
    encoder_taps,
    shared_noise,
    unet_taps,
)

pytest.importorskip("diffusers", reason="needs diffusers (the extra [diffusion])")


@pytest.fixture(scope="module")
def small() -> StableDiffusion:
    torch.manual_seed(0)
    empty = torch.randn(1, 77, SMALL.text)
    return StableDiffusion(unet=build_unet(SMALL), vae=build_vae(SMALL), empty_prompt=empty)


class Inputs:
    """What modules are called with, in the order of the calls."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.inputs: list[Tensor] = []
        for module in modules:
            module.register_forward_pre_hook(lambda _, given: self.inputs.append(given[0]))


def equal(taps: list[Tensor], expected: list[Tensor]) -> None:
    assert len(taps) == len(expected)
    for one, other in zip(taps, expected):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=3e-5)


@torch.no_grad()
def test_the_unets_taps_are_those_of_a_full_run():
    unet = build_unet(SMALL).eval()
    recorded = Inputs(block.resnets[2] for block in unet.up_blocks)
    latents, prompt = torch.randn(2, 4, 16, 8), torch.randn(2, 77, SMALL.text)
    time = torch.randn(2, 4 * SMALL.unet[0])
    unet(latents, 0, encoder_hidden_states=prompt, class_labels=time)
    equal(unet_taps(unet, latents, prompt, time), recorded.inputs[:4])
    assert [latents.shape[-2] / tap.shape[-2] for tap in recorded.inputs[:4]] == [8, 4, 2, 1]


@torch.no_grad()
def test_the_autoencoders_taps_and_mean_are_those_of_a_full_run():
    vae = build_vae(SMALL).eval()
    encoder, decoder = vae.encoder, vae.decoder
    encoded = Inputs(encoder.down_blocks[level].resnets[1] for level in (2, 3))
    decoded = Inputs(decoder.up_blocks[level].resnets[2] for level in (0, 1))
    images = 2 * torch.rand(2, 3, 64, 128) - 1
    mean = vae.encode(images).latent_dist.mean
    vae.decode(mean)
    latents, taps = encoder_taps(vae, images)
    equal([latents, *taps], [mean, *encoded.inputs[:2]])
    equal(decoder_taps(vae, mean), decoded.inputs[:2])
    sides = [images.shape[-1] / tap.shape[-1] for tap in encoded.inputs[:2] + decoded.inputs[:2]]
    assert sides == [4, 8, 8, 4]


@torch.no_grad()
def test_one_step_of_the_official_noise_schedule_and_a_decoder_on_clean_latents(small):
    from diffusers import DDPMScheduler

    crops, prompt = torch.rand(1, 3, 64, 64), torch.randn(1, 77, SMALL.text)
    time = torch.randn(1, small.time_width)
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    latents = 0.18215 * small.vae.encode(2 * crops - 1).latent_dist.mean
    noise = F.interpolate(shared_noise(), (8, 8), mode="bicubic")
    noisy = schedule.add_noise(latents, noise.to(latents.device), torch.tensor([0]))
    taps = small(crops, prompt, time)
    equal(taps[2:6], unet_taps(small.unet, noisy, prompt, time))
    equal(taps[6:], decoder_taps(small.vae, latents / 0.18215))


def test_the_shared_noise_is_that_of_seed_42():
    noise = shared_noise()
    expected = torch.tensor([1.92692, 1.48728, 0.90072, -2.10552])
    torch.testing.assert_close(noise.flatten()[:4], expected, rtol=0, atol=1e-5)
    assert noise.shape == (1, 4, 64, 64)


def test_taps_of_the_full_topology():
    sizes = StableDiffusionSizes()
    with torch.device("meta"):
        unet, vae = build_unet(sizes), build_vae(sizes)
        full = StableDiffusion(unet=unet, vae=vae, empty_prompt=torch.zeros(1, 77, 768))
        full.noise = torch.zeros(1, 4, 64, 64)
        taps = full(torch.zeros(1, 3, 512, 512), torch.zeros(1, 77, 768), torch.zeros(1, 1280))
    assert full.tap_channels == [512, 512, 2560, 1920, 960, 640, 512, 512]
    assert [tap.shape[1] for tap in taps] == full.tap_channels
    assert [512 // tap.shape[-1] for tap in taps] == [4, 8, 64, 32, 16, 8, 8, 4]
    counts = [sum(p.numel() for p in network.parameters()) for network in (unet, vae)]
    assert counts == [859_520_964, 83_653_863]


def test_gradients_pass_through_the_frozen_unet_to_its_prompt_and_nothing_else(small):
    prompt = torch.randn(1, 77, SMALL.text, requires_grad=True)
    time = torch.zeros(1, small.time_width, requires_grad=True)
    taps = small(torch.rand(1, 3, 64, 64), prompt, time)
    assert [tap.requires_grad for tap in taps] == [False] * 2 + [True] * 4 + [False] * 2
    sum(tap.square().sum() for tap in taps[2:6]).backward()
    assert prompt.grad.any() and time.grad.any()
    assert all(not p.requires_grad and p.grad is None for p in small.parameters())
    assert not small.train().training and not small.unet.training
