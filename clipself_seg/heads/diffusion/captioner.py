"""ODISE's implicit captioner (arXiv 2303.04803, section 3.2): CLIP's image embedding as a text prompt.

Shapes: B crops, E width of CLIP's embedding, T tokens and C width of a prompt, D width of the time
    embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.runtime import normal_parameter

TOKENS = 77


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
def embed_crops(clip: DenseCLIP, crops: Tensor, antialias: bool = False) -> Tensor:
    """Image embeddings (B, E), not normalised, of square crops (B, 3, S, S), RGB in [0, 1].

    This is CLIP's own preprocessing on tensors. Its centre crop changes nothing of a square, and
    bicubic values outside of [0, 1] stay, as they do in torchvision.

    Args:
        clip: CLIP whose image tower embeds the crops.
        crops: square crops of any size.
        antialias: whether crops are smoothed before they are made smaller.
    """
    size = (clip.image_size, clip.image_size)
    if tuple(crops.shape[-2:]) != size:
        crops = F.interpolate(crops, size, mode="bicubic", align_corners=False, antialias=antialias)
    return clip.visual(clip.normalise(crops)).float()
