"""Feature maps of Stable Diffusion, conditioned on what CLIP sees (ODISE, arXiv 2303.04803).

Shapes: B images, n crops of an image, H x W pixels of the canvas, S side of a crop.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.clip import DenseCLIP
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.diffusion_features.captioner import ImplicitCaptioner, embed_crops
from clipself_seg.heads.panoptic.diffusion_features.crops import crop_corners, cut_crops, join_crops
from clipself_seg.heads.panoptic.diffusion_features.networks import StableDiffusionSizes
from clipself_seg.heads.panoptic.diffusion_features.projections import (
    WIDTH,
    project_taps,
    tap_projections,
)
from clipself_seg.heads.panoptic.diffusion_features.stable_diffusion import StableDiffusion
from clipself_seg.heads.panoptic.diffusion_features.weights import load_stable_diffusion
from clipself_seg.heads.panoptic.mask_generator.pixel_decoder import STRIDES

DIVISIBILITY = 64  # the U-Net's coarsest level has a stride of 64 pixels


class DiffusionFeatures(nn.Module):
    """Maps of strides 4, 8, 16 and 32 of the crops of a canvas, in training as in evaluation.

    What trains has the names of ODISE's checkpoints below ``backbone.``: the captioner
    (``feature_extractor``) and the projections. Holds its CLIP, but does not own it.

    Attributes:
        channels: of each map.
        frozen_prefixes: of entries of the state that a checkpoint does not hold.
    """

    frozen_prefixes: tuple[str, ...] = ("stable_diffusion.",)

    def __init__(
        self,
        *,
        clip: DenseCLIP,
        stable_diffusion: StableDiffusion,
        crop: int = 512,
        crops_at_once: int = 1,
        antialias: bool = False,
    ) -> None:
        """
        Args:
            clip: frozen; its image embeddings become prompts.
            stable_diffusion: frozen too.
            crop: side in pixels of what the diffusion model sees, a multiple of 64.
            crops_at_once: how many crops go through the diffusion model together; more take more memory.
            antialias: smooth the crops before they are made smaller for CLIP (official: no).

        Raises:
            InputError: a size or a number that does not work.
        """
        super().__init__()
        if crop < DIVISIBILITY or crop % DIVISIBILITY:
            raise InputError(
                f"MODEL.DIFFUSION.CROP is {crop}: give a multiple of {DIVISIBILITY} pixels"
            )
        if crops_at_once < 1:
            raise InputError(f"MODEL.DIFFUSION.CROPS_AT_ONCE is {crops_at_once}: give 1 or more")
        self.crop, self.crops_at_once, self.antialias = crop, crops_at_once, antialias
        self.channels = dict.fromkeys(STRIDES, WIDTH)
        self._clip = (clip,)
        self.feature_extractor = ImplicitCaptioner(
            clip_width=clip.embed_dim,
            text_width=stable_diffusion.text_width,
            time_width=stable_diffusion.time_width,
        )
        self.feature_projections = tap_projections(stable_diffusion.tap_channels)
        self.stable_diffusion = stable_diffusion

    def facts(self) -> dict[str, Any]:
        """What decides the maps beside the weights; the noise is no weight."""
        noise = hash_tensors({"noise": self.stable_diffusion.noise})
        return {"crop": self.crop, "antialias": self.antialias, "noise": noise}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps s2, s3, s4, s5, (B, 512, H / stride, W / stride).

        Every crop is seen alone, with a caption of its own; where crops overlap, the maps are means.

        Args:
            images: (B, 3, H, W), RGB in [0, 1], H and W multiples of 64, padding black.

        Raises:
            InputError: a size that is no multiple of 64.
        """
        height, width = images.shape[-2:]
        if height % DIVISIBILITY or width % DIVISIBILITY:
            raise InputError(
                f"diffusion features of {height}x{width} pixels: pad to multiples of {DIVISIBILITY} "
                "(MODEL.MASK_FORMER.SIZE_DIVISIBILITY)"
            )
        side = min(self.crop, height, width)
        corners = crop_corners(height, width, side)
        crops = cut_crops(images, corners, side).split(self.crops_at_once)
        parts = [self._maps(some) for some in crops]
        return {
            name: join_crops(
                torch.cat([part[name] for part in parts]), corners, (height, width), stride
            )
            for name, stride in STRIDES.items()
        }

    def _maps(self, crops: Tensor) -> dict[str, Tensor]:
        """Maps of crops (any number, 3, S, S)."""
        side, size = crops.shape[-1], (self.crop, self.crop)
        if side != self.crop:
            crops = F.interpolate(crops, size, mode="bicubic", align_corners=False)
        (clip,) = self._clip
        image_BE = embed_crops(clip, crops, self.antialias)
        prompt, time = self.feature_extractor(image_BE, self.stable_diffusion.empty_prompt)
        taps = self.stable_diffusion(crops, prompt, time)
        return project_taps(self.feature_projections, taps, side)


def build_diffusion_features(
    *,
    clip: DenseCLIP,
    weights: str | os.PathLike[str],
    crop: int = 512,
    noise_seed: int = 42,
    crops_at_once: int = 1,
    antialias: bool = False,
    sizes: StableDiffusionSizes | None = None,
) -> DiffusionFeatures:
    """`DiffusionFeatures` on weights of Stable Diffusion; the defaults are ODISE's.

    Args:
        weights, noise_seed, sizes: see `load_stable_diffusion`.
        clip, crop, crops_at_once, antialias: see `DiffusionFeatures`.

    Raises:
        InputError: see there.
    """
    return DiffusionFeatures(
        clip=clip,
        stable_diffusion=load_stable_diffusion(weights, noise_seed=noise_seed, sizes=sizes),
        crop=crop,
        crops_at_once=crops_at_once,
        antialias=antialias,
    )
