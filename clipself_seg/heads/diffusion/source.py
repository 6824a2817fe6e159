"""Feature maps of Stable Diffusion conditioned on CLIP's image embeddings (ODISE, arXiv 2303.04803).

ODISE's implicit captioner (section 3.2) turns CLIP's embedding of a crop into a text prompt; the taps of the crops
are projected, and joined to maps of the canvas.

Shapes: B images, or crops where a prompt is made of one; n crops of an image, H x W pixels of the canvas, S side
    of a crop in pixels, E width of CLIP's embedding, T tokens and C width of a prompt, D width of the time
    embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip import VisionLanguageBackbone
from clipself_seg.clip.runtime import normal_parameter
from clipself_seg.errors import InputError
from clipself_seg.heads.diffusion.stable_diffusion import TOKENS, StableDiffusion
from clipself_seg.heads.panoptic.feature_sources import FeatureSource
from clipself_seg.heads.panoptic.pixel_decoder import STRIDES, normed_conv
from clipself_seg.heads.windows import StridedWindows

WIDTH = 512  # channels of the maps
HIDDEN = 128  # channels inside a residual block
# The map that each tap is added to: encoder (2), U-Net (4), decoder (2). The first tap of the U-Net
# has a stride of 64 and is enlarged.
TAP_MAPS = ("s2", "s3", "s5", "s5", "s4", "s3", "s3", "s2")
DIVISIBILITY = 64  # the U-Net's coarsest level has a stride of 64 pixels


class PositionalLinear(nn.Module):
    """One linear layer, whose output gets a learned vector for each position."""

    def __init__(self, width_in: int, width_out: int, positions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)
        self.positional_embedding = normal_parameter(1, positions, width_out, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms (B, width_in) into (B, positions, width_out)."""
        return self.linear(x)[:, None] + self.positional_embedding


class ImplicitCaptioner(nn.Module):
    """Turns image embeddings into the diffusion model's conditions: a prompt and a term of the time.

    Both are gated by the tanh of a factor that starts at 0, so training starts with the empty prompt.
    Parameter names are those of ODISE's checkpoints below ``backbone.feature_extractor.``.
    """

    def __init__(self, *, clip_width: int, text_width: int, time_width: int) -> None:
        """
        Args:
            clip_width: width E of CLIP's embedding.
            text_width: width C of a prompt.
            time_width: width D of the time embedding.
        """
        super().__init__()
        self.clip_project = PositionalLinear(clip_width, text_width, TOKENS)
        self.alpha_cond = nn.Parameter(torch.zeros(1, TOKENS, text_width))
        self.time_embed_project = PositionalLinear(clip_width, time_width, 1)
        self.alpha_cond_time_embed = nn.Parameter(torch.zeros(time_width))

    def forward(self, image_BE: Tensor, empty_1TC: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts (B, T, C) and terms of the time embedding (B, D).

        Args:
            image_BE: CLIP's image embeddings, not normalised.
            empty_1TC: encoded empty prompt.
        """
        prompt_BTC = empty_1TC + self.alpha_cond.tanh() * self.clip_project(image_BE)
        time_BD = self.alpha_cond_time_embed.tanh() * self.time_embed_project(image_BE)[:, 0]
        return prompt_BTC, time_BD


@torch.no_grad()
def embed_crops(clip: VisionLanguageBackbone, crops: Tensor) -> Tensor:
    """Image embeddings (B, E), not normalised, of square crops (B, 3, S, S), RGB in [0, 1].

    This is CLIP's own preprocessing on tensors, without smoothing before crops are made smaller (official). Its centre
    crop changes nothing of a square, and bicubic values outside of [0, 1] stay, as they do in torchvision.

    Args:
        clip: CLIP whose image tower embeds the crops.
        crops: square crops of any size.
    """
    size = (clip.image_size, clip.image_size)
    if tuple(crops.shape[-2:]) != size:
        crops = F.interpolate(crops, size, mode="bicubic", align_corners=False)
    return clip.embed_images(clip.normalise(crops)).float()


class Bottleneck(nn.Module):
    """Residual block of ResNet-50 with group norms, under the parameter names of Detectron2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = normed_conv(channels, HIDDEN, 1)
        self.conv2 = normed_conv(HIDDEN, HIDDEN, 3)
        self.conv3 = normed_conv(HIDDEN, WIDTH, 1)
        if channels != WIDTH:
            self.shortcut = normed_conv(channels, WIDTH, 1)
        for convolution in self.children():
            assert isinstance(convolution, nn.Conv2d)
            # The initialisation of layers with ReLU (He et al.), which normed_conv's own does not assume.
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Transforms (B, C, h, w) into (B, WIDTH, h, w)."""
        inner = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(inner + (self.shortcut(x) if hasattr(self, "shortcut") else x))


def project_taps(
    projections: nn.ModuleList, taps: Sequence[Tensor], side: int
) -> dict[str, Tensor]:
    """Maps (B, WIDTH, side / stride, side / stride) of crops, each the sum of its projected taps.

    Args:
        projections: one a tap, which gives it `WIDTH` channels.
        taps: taps (B, C, h, w) of any size, resized by taking the nearest cell.
        side: side of the crops in pixels.
    """
    maps: dict[str, Tensor] = {}
    for projection, tap, name in zip(projections, taps, TAP_MAPS, strict=True):
        size = (side // STRIDES[name], side // STRIDES[name])
        if tuple(tap.shape[-2:]) != size:
            tap = F.interpolate(tap, size, mode="nearest")
        projected = projection(tap)
        maps[name] = maps[name] + projected if name in maps else projected
    return {name: maps[name] for name in STRIDES}


class DiffusionFeatures(FeatureSource):
    """Maps of strides 4, 8, 16 and 32 from the crops of a canvas, in training as in evaluation.

    The captioner (``feature_extractor``) and the projections train, under the names of ODISE's
    checkpoints below ``backbone.``.
    """

    frozen_prefixes: tuple[str, ...] = ("stable_diffusion.",)

    def __init__(
        self, *, clip: VisionLanguageBackbone, stable_diffusion: StableDiffusion, crop: int = 512
    ) -> None:
        """
        Args:
            clip: frozen CLIP, whose image embeddings become prompts.
            stable_diffusion: frozen Stable Diffusion.
            crop: side in pixels of the diffusion model's input, a multiple of 64.
        """
        super().__init__(clip)
        assert crop % DIVISIBILITY == 0
        self.crop = crop
        self.channels = dict.fromkeys(STRIDES, WIDTH)
        self.feature_extractor = ImplicitCaptioner(
            clip_width=clip.embed_dim,
            text_width=stable_diffusion.text_width,
            time_width=stable_diffusion.time_width,
        )
        self.feature_projections = nn.ModuleList(
            nn.Sequential(Bottleneck(count)) for count in stable_diffusion.tap_channels
        )
        self.stable_diffusion = stable_diffusion

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps s2, s3, s4, s5 (B, 512, H / stride, W / stride) of RGB images.

        Every crop is processed alone, with its own implicit caption; where crops overlap, the maps
        are averaged.

        Args:
            images: (B, 3, H, W) in [0, 1], H and W multiples of 64, padding black.

        Raises:
            InputError: H or W is no multiple of 64.
        """
        height, width = images.shape[-2:]
        if height % DIVISIBILITY or width % DIVISIBILITY:
            needed = f"SIZE_DIVISIBILITY must be {DIVISIBILITY} or a multiple of it"
            raise InputError(f"{height}x{width} pixels: MODEL.MASK_FORMER.{needed}")
        side = min(self.crop, height, width)
        windows = StridedWindows(side, side)
        corners = windows.corners((height, width))
        crops = torch.cat([windows.cut(image, corners) for image in images])
        parts = [self._maps(crop) for crop in crops.split(1)]  # together they take more memory
        return {
            name: _joined(torch.cat([part[name] for part in parts]), side, (height, width), stride)
            for name, stride in STRIDES.items()
        }

    def _maps(self, crops: Tensor) -> dict[str, Tensor]:
        """Maps of crops (any number, 3, S, S)."""
        side = crops.shape[-1]
        size = (self.crop, self.crop)
        if side != self.crop:
            crops = F.interpolate(crops, size, mode="bicubic", align_corners=False)
        image_BE = embed_crops(self.clip, crops)
        prompt, time = self.feature_extractor(image_BE, self.stable_diffusion.empty_prompt)
        taps = self.stable_diffusion(crops, prompt, time)
        return project_taps(self.feature_projections, taps, side)


def _joined(maps: Tensor, side: int, size: tuple[int, int], stride: int) -> Tensor:
    """Maps (B, C, height / stride, width / stride) of canvases: in a cell, the mean of all crops that cover it.

    Args:
        maps: (B * n, C, side / stride, side / stride), the n crops of an image one after another.
        side: side of a crop in pixels.
        size: height and width of the canvas in pixels.
        stride: stride of the maps in pixels.
    """
    windows = StridedWindows(side // stride, side // stride)
    grid = (size[0] // stride, size[1] // stride)
    of_images = maps.unflatten(0, (-1, len(windows.corners(grid))))
    return torch.stack([windows.mean(of_image, grid) for of_image in of_images])
