"""Builds Stable Diffusion v1's networks with `diffusers` from their sizes; nothing is downloaded."""

from __future__ import annotations

import dataclasses
from typing import Any

from clipself_seg.errors import InputError


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
    """The package diffusers, or an `InputError` if it is not installed."""
    # Imported here, since it takes seconds and only this source needs it.
    try:
        import diffusers
    except ImportError as error:
        raise InputError(
            f"features of Stable Diffusion need the package diffusers ({error}): "
            'pip install ".[diffusion]"'
        ) from None
    return diffusers
