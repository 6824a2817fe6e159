"""Embedding of a query and its mask, which is compared with texts.

Shapes: B images, Q queries, C channels, h x w pixels of stride 4.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.linear import Linear
from clipself_seg.clip.precision import full_precision
from clipself_seg.heads.panoptic.class_logits import similarity_scale

EPS = 1e-8


class MLP(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, width: int, out: int | None = None) -> None:
        """
        Args:
            width: width C of the input and of the hidden layers.
            out: width of the output; None: C.
        """
        super().__init__()
        self.layers = nn.ModuleList(Linear(width, wide) for wide in (width, width, out or width))

    def forward(self, x: Tensor) -> Tensor:
        """Transforms (..., C) into (..., out)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class PooledMaskEmbed(nn.Module):
    """The query's state plus the mean feature of its mask, through an MLP.

    Attributes:
        logit_scale: logarithm of the factor that cosines are multiplied by.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool_proj = nn.Sequential(nn.LayerNorm(width), Linear(width, width))
        self.mask_embed = nn.Sequential(nn.LayerNorm(width), MLP(width))
        self.logit_scale = initial_logit_scale()

    def forward(self, states_BQC: Tensor, features_BChw: Tensor, masks_BQhw: Tensor) -> Tensor:
        """Embeddings (B, Q, C), of any norm.

        Args:
            states_BQC: states of the queries after the final norm.
            features_BChw: mask features of the pixel decoder.
            masks_BQhw: mask logits; features are pooled where they are positive, and the masks get
                no gradient.
        """
        pooled_BQC = pool_masks(features_BChw, masks_BQhw)
        return self.mask_embed(self.pool_proj(pooled_BQC) + states_BQC)

    @property
    def scale(self) -> Tensor:
        """Positive scalar that cosines are multiplied by."""
        return similarity_scale(self.logit_scale)


def initial_logit_scale() -> nn.Parameter:
    """CLIP's own start of the logarithm of a learned factor of cosines."""
    return nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def pool_masks(features_BChw: Tensor, masks_BQhw: Tensor) -> Tensor:
    """Mean feature where a mask's logits are positive, (B, Q, C) float32; 0 for an empty mask."""
    with full_precision(features_BChw.device):
        inside_BQN = (masks_BQhw.detach() > 0).flatten(2).float()
        sums_BQC = inside_BQN @ features_BChw.float().flatten(2).transpose(1, 2)
        return sums_BQC / (inside_BQN.sum(dim=-1, keepdim=True) + EPS)
