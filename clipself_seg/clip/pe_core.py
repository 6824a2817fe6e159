"""PE-Core, the Perception Encoder that compares with texts (arXiv 2504.13181): rotary positions beside a table, a
class token, and an attention pool over class token and patches.

The text tower is CLIP's, of 32 tokens. The largest one, G/14, has no class token and counts its cells from 0.

Shapes: B images, L = P + N tokens, P = 1 or 0 for the class token, D width, E embedding.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clipself_seg.clip import tower_kind
from clipself_seg.clip.eva import PatchEmbed
from clipself_seg.clip.layers import ResidualBlock, initialise_blocks
from clipself_seg.clip.linear import Linear
from clipself_seg.clip.pooled import LatentPool, PooledTower, trunk_layouts
from clipself_seg.clip.positions import Rotary, patch_grid, resample_positions, rotary_factors
from clipself_seg.clip.runtime import normal_parameter

POOL_HEADS = 8  # of every size


class Shape(NamedTuple):
    """Sizes of an image tower; `grid` is that of pretraining, to which rotary positions are scaled."""

    width: int
    layers: int
    heads: int
    patch_size: int
    grid: int
    mlp_ratio: float = 4.0
    class_token: bool = True


SHAPES = {
    "vit_pe_core_tiny_patch16_384": Shape(192, 12, 3, 16, 24),
    "vit_pe_core_small_patch16_384": Shape(384, 12, 6, 16, 24),
    "vit_pe_core_base_patch16_224": Shape(768, 12, 12, 16, 14),
    "vit_pe_core_large_patch14_336": Shape(1024, 24, 16, 14, 24),
    "vit_pe_core_gigantic_patch14_448": Shape(1536, 50, 16, 14, 32, 8960 / 1536, False),
}


class RotaryBlock(ResidualBlock):
    """A block whose queries and keys are turned by their cells."""

    def forward(self, x_BLD: Tensor, rotary: Tensor) -> Tensor:  # type: ignore[override]
        """Updates the tokens, (B, L, D) -> (B, L, D); `rotary` is the table of the grid."""
        return self._finish(x_BLD, self.attn.forward_rotated(self.ln_1(x_BLD), rotary))


class PECoreTower(PooledTower):
    """PE-Core's image tower; parameter names are timm's, but for those of the blocks.

    Inputs of any size that the patch divides, square or not, are accepted: positions are resized bicubically, with
    antialiasing, and rotary positions span the grid of pretraining on each axis.
    """

    cls_token: nn.Parameter | None

    def __init__(self, *, image_size: int, shape: Shape, embed_dim: int) -> None:
        """
        Args:
            image_size: side in pixels of the images for which the position table is.
            shape: sizes of the trunk.
            embed_dim: E.
        """
        width = shape.width
        super().__init__(
            image_size=image_size, patch_size=shape.patch_size, width=width, embed_dim=embed_dim
        )
        self.prefix = int(shape.class_token)
        self.head_channels = width // shape.heads
        self.rotary = Rotary(
            span=shape.grid, first=self.prefix, columns_first=True, prefix=self.prefix
        )
        self.patch_embed = PatchEmbed(patch_size=self.patch_size, width=width, bias=False)
        first = normal_parameter(1, 1, width, std=0.02) if shape.class_token else None
        self.register_parameter("cls_token", first)
        cells = (image_size // self.patch_size) ** 2
        self.pos_embed = normal_parameter(1, self.prefix + cells, width, std=0.02)
        self.norm_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            RotaryBlock(width=width, heads=shape.heads, mlp_ratio=shape.mlp_ratio, quick_gelu=False)
            for _ in range(shape.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.attn_pool = LatentPool(width=width, heads=POOL_HEADS, hidden=4 * width, eps=1e-5)
        self.head = Linear(width, embed_dim)
        initialise_blocks(self.blocks)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[int, int]]:
        """Tokens (B, L, D) before the first block, the rotary table and the grid (h, w)."""
        grid = patch_grid(images, self.patch_size)
        tokens_BLD = self.patch_embed(images)
        if self.cls_token is not None:
            first_B1D = self.cls_token.to(tokens_BLD.dtype).expand(images.shape[0], -1, -1)
            tokens_BLD = torch.cat([first_B1D, tokens_BLD], dim=1)
        positions_LD = resample_positions(
            self.pos_embed[0], grid, antialias=True, first=self.prefix
        )
        tokens_BLD = self.norm_pre(tokens_BLD + positions_LD.to(tokens_BLD.dtype))
        factors = rotary_factors(grid, self.head_channels, images.device, self.rotary)
        return tokens_BLD, (factors,), grid

    def stem_parameters(self) -> list[nn.Parameter]:
        first = [] if self.cls_token is None else [self.cls_token]
        return [*self.patch_embed.parameters(), *first, *self.norm_pre.parameters()]


def _supports(class_token: bool, config: tower_kind.Config) -> bool:
    shape = SHAPES.get(config["vision_cfg"].get("timm_model_name", ""))
    return (
        shape is not None and shape.class_token == class_token and tower_kind.has_clip_text(config)
    )


def _build(architecture: tower_kind.Architecture, quick_gelu: bool) -> PECoreTower:
    vision = architecture.vision
    shape = SHAPES[vision["timm_model_name"]]
    side, embed_dim = vision["image_size"], architecture.embed_dim
    return PECoreTower(image_size=side, shape=shape, embed_dim=embed_dim)


MARKS = ("attn_pool.latent", "norm_pre.weight", "head.weight")
SCALARS = {"logit_scale": math.log(1 / 0.07)}  # before training
_KEYS = {
    "visual.attn_pool.latent": 3,
    "visual.norm_pre.weight": 1,
    "visual.head.weight": 2,
    "visual.patch_embed.proj.weight": 4,
}
PE_CORE = tower_kind.TowerKind(
    name="PE-Core ViT",
    supports=functools.partial(_supports, True),
    build_image=_build,
    key_tensors=_KEYS | {"visual.cls_token": 3},
    read_sizes=functools.partial(
        tower_kind.vit_sizes, "visual.patch_embed.proj.weight", "blocks", "visual.head.weight"
    ),
    layouts=trunk_layouts(MARKS, SCALARS),
    positions={"visual.pos_embed": tower_kind.PositionTable()},
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    squash=True,
    filter="bilinear",
    templates="openai80",
    largest_scale=math.inf,
    image_files=True,
)
PE_CORE_G = dataclasses.replace(
    PE_CORE,
    name="PE-Core ViT without class token",
    supports=functools.partial(_supports, False),
    key_tensors=_KEYS,
    positions={"visual.pos_embed": tower_kind.PositionTable(first=0)},
)
