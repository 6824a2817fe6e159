"""Stable Diffusion v1 as a frozen feature extractor: eight taps of one step of denoising.

Its networks are built with `diffusers` from their sizes; nothing is downloaded. Their blocks are run one by one
until the last tap. A tap is the input of a residual block (in the U-Net with the skip connection appended).

Shapes: B crops, S side of a crop in pixels, T tokens and C width of a prompt, D width of the time embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.errors import of_extra

TOKENS = 77  # of a prompt
SCALE = 0.18215  # factor of latents, so that they have about unit variance
# Factors of signal and noise at step t = 0 of a schedule whose first beta is 0.00085.
SIGNAL = (1 - 0.00085) ** 0.5
NOISE = 0.00085**0.5
NOISE_SEED = 42
LATENT_CELLS = 64  # side of the stored noise in cells, that of a crop of 512 pixels
# (level, residual block) of the blocks whose input is a tap.
ENCODER_TAPS = ((2, 1), (3, 1))
UNET_TAPS = ((0, 2), (1, 2), (2, 2), (3, 2))
DECODER_TAPS = ((0, 2), (1, 2))


@dataclasses.dataclass(frozen=True)
class StableDiffusionSizes:
    """Sizes of the networks; the defaults are those of Stable Diffusion v1.

    Attributes:
        unet: channels of the U-Net's four levels.
        vae: channels of the autoencoder's four levels.
        text: width of a prompt.
        heads: number of heads of the U-Net's attention.
        groups: number of groups of the group norms.
    """

    unet: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    vae: tuple[int, int, int, int] = (128, 256, 512, 512)
    text: int = 768
    heads: int = 8
    groups: int = 32


# The same topology in a few hundred thousand weights, for tests.
SMALL = StableDiffusionSizes(unet=(16, 16, 32, 32), vae=(8, 8, 16, 16), text=24, heads=2, groups=4)


def build_unet(sizes: StableDiffusionSizes) -> Any:
    """A `UNet2DConditionModel` with random weights that adds class labels to its time embedding."""
    return _diffusers().UNet2DConditionModel(
        sample_size=64,
        block_out_channels=sizes.unet,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=sizes.text,
        attention_head_dim=sizes.heads,  # diffusers means the number of heads
        norm_num_groups=sizes.groups,
        class_embed_type="identity",
    )


def build_vae(sizes: StableDiffusionSizes) -> Any:
    """An `AutoencoderKL` with random weights."""
    return _diffusers().AutoencoderKL(
        sample_size=512,
        block_out_channels=sizes.vae,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=sizes.groups,
    )


def _diffusers() -> Any:
    # Imported here, since it takes seconds and only this source needs it.
    return of_extra("diffusers", "MODEL.MASK_GENERATOR.SOURCE diffusion", "diffusion")


class StableDiffusion(nn.Module):
    """Frozen autoencoder and frozen U-Net; gradients flow through the U-Net to its prompt.

    Attributes:
        tap_channels: channels of the eight taps: encoder (2), U-Net (4), decoder (2).
        text_width: width C of a prompt.
        time_width: width D of the time embedding.
        empty_prompt: encoded empty prompt, (1, T, C).
        noise: the same noise for all crops, (1, latent channels, 64, 64).
    """

    empty_prompt: Tensor
    noise: Tensor

    def __init__(self, *, unet: Any, vae: Any, empty_prompt: Tensor) -> None:
        """
        Args:
            unet: diffusers' `UNet2DConditionModel`.
            vae: diffusers' `AutoencoderKL`.
            empty_prompt: encoded empty prompt, (1, T, C).
        """
        super().__init__()
        self.unet = unet
        self.vae = vae
        self.requires_grad_(False).eval()
        # Not saved: they follow from the frozen weights and a fixed seed.
        self.register_buffer("empty_prompt", empty_prompt.detach(), persistent=False)
        self.register_buffer("noise", shared_noise(), persistent=False)
        blocks = [vae.encoder.down_blocks[i].resnets[j] for i, j in ENCODER_TAPS]
        blocks += [unet.up_blocks[i].resnets[j] for i, j in UNET_TAPS]
        blocks += [vae.decoder.up_blocks[i].resnets[j] for i, j in DECODER_TAPS]
        self.tap_channels = [block.norm1.num_channels for block in blocks]
        self.text_width = empty_prompt.shape[-1]
        self.time_width = unet.time_embedding.linear_2.out_features

    def train(self, mode: bool = True) -> StableDiffusion:
        """Keeps the module in evaluation mode, whatever the model around it does."""
        return super().train(False)

    def forward(self, crops: Tensor, prompt_BTC: Tensor, time_BD: Tensor) -> list[Tensor]:
        """The eight taps of crops, (B, channels, h, w) each.

        Args:
            crops: (B, 3, S, S), RGB in [0, 1], S a multiple of 64.
            prompt_BTC: prompts, keys and values of the U-Net's cross-attention.
            time_BD: terms that are added to the U-Net's time embedding.
        """
        mean, taps = encoder_taps(self.vae, 2 * crops - 1)
        noise = self.noise
        if noise.shape[-2:] != mean.shape[-2:]:
            noise = F.interpolate(noise, mean.shape[-2:], mode="bicubic", align_corners=False)
        noisy = SIGNAL * SCALE * mean + NOISE * noise
        taps += unet_taps(self.unet, noisy, prompt_BTC, time_BD)
        # The decoder is given the latents without noise: undoing SCALE gives the encoder's mean.
        return taps + decoder_taps(self.vae, mean)


def shared_noise() -> Tensor:
    """Unit Gaussian noise (1, 4, 64, 64), that of the official seed, the same on every machine."""
    generator = torch.Generator("cpu").manual_seed(NOISE_SEED)
    return torch.randn(1, 4, LATENT_CELLS, LATENT_CELLS, generator=generator, device="cpu")


def encoder_taps(vae: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Mean of the unscaled latents (B, 4, S / 8, S / 8) and two taps of images.

    Args:
        vae: diffusers' `AutoencoderKL`.
        images: (B, 3, S, S) in [-1, 1].
    """
    encoder = vae.encoder
    taps = []
    x = encoder.conv_in(images)
    for level, block in enumerate(encoder.down_blocks):
        for index, resnet in enumerate(block.resnets):
            if (level, index) in ENCODER_TAPS:
                taps.append(x)
            x = resnet(x, None)
        for downsample in block.downsamplers or ():
            x = downsample(x)
    x = encoder.conv_norm_out(encoder.mid_block(x))
    moments = vae.quant_conv(encoder.conv_out(encoder.conv_act(x)))
    return moments.chunk(2, dim=1)[0], taps


def decoder_taps(vae: Any, latents: Tensor) -> list[Tensor]:
    """Two taps of the decoder, which is not run any further.

    Args:
        vae: diffusers' `AutoencoderKL`.
        latents: unscaled latents (B, 4, h, w).
    """
    decoder = vae.decoder
    taps: list[Tensor] = []
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for level, block in enumerate(decoder.up_blocks):
        for index, resnet in enumerate(block.resnets):
            if (level, index) in DECODER_TAPS:
                taps.append(x)
            if len(taps) == len(DECODER_TAPS):
                return taps
            x = resnet(x, None)
        for upsample in block.upsamplers or ():
            x = upsample(x)
    raise AssertionError("a decoder of fewer levels than its taps")


def unet_taps(unet: Any, latents: Tensor, prompt_BTC: Tensor, time_BD: Tensor) -> list[Tensor]:
    """Four taps of the U-Net at step 0, which is not run any further.

    Args:
        unet: diffusers' `UNet2DConditionModel`.
        latents: scaled, noisy latents (B, 4, h, w), h and w multiples of 8.
        prompt_BTC: prompts, keys and values of the cross-attention.
        time_BD: terms that are added to the time embedding.
    """
    steps = torch.zeros(len(latents), device=latents.device)
    time = unet.time_embedding(unet.time_proj(steps)) + time_BD
    x = unet.conv_in(latents)
    skips = [x]
    taps: list[Tensor] = []
    for block in unet.down_blocks:
        for resnet, attention in _layers(block):
            x = _attend(attention, resnet(x, time), prompt_BTC)
            skips.append(x)
        for downsample in block.downsamplers or ():
            x = downsample(x)
            skips.append(x)
    x = unet.mid_block(x, time, encoder_hidden_states=prompt_BTC)
    for level, block in enumerate(unet.up_blocks):
        for index, (resnet, attention) in enumerate(_layers(block)):
            x = torch.cat([x, skips.pop()], dim=1)
            if (level, index) in UNET_TAPS:
                taps.append(x)
            if len(taps) == len(UNET_TAPS):
                return taps
            x = _attend(attention, resnet(x, time), prompt_BTC)
        for upsample in block.upsamplers or ():
            x = upsample(x)
    raise AssertionError("a U-Net of fewer levels than its taps")


def _layers(block: Any) -> Iterator[tuple[Any, Any]]:
    """The residual blocks of a level, each with the attention after it or None."""
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    return zip(block.resnets, attentions, strict=True)


def _attend(attention: Any, x: Tensor, prompt_BTC: Tensor) -> Tensor:
    """`x` after the attention, or `x` itself if there is none."""
    if attention is None:
        return x
    return attention(x, encoder_hidden_states=prompt_BTC, return_dict=False)[0]
