"""The ViT of EVA-02 CLIP: rotary positions, sub-LN and SwiGLU (EVA-CLIP, arXiv 2303.15389).

Shapes: B images, L = 1 + N tokens, Q mask tokens, R = L + Q rows, tokens first, D width.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip import tower_kind
from clipself_seg.clip.layers import TokenAttention, ViTBlock, split_heads
from clipself_seg.clip.linear import Linear, linear
from clipself_seg.clip.positions import patch_grid, resample_positions, rotary_factors
from clipself_seg.clip.precision import in_own_precision
from clipself_seg.clip.runtime import normal_parameter
from clipself_seg.clip.tower import KEYS, QUERIES, TransformerTower

NORM_EPS = 1e-6
SHAPES = {  # timm name -> width, layers, heads, patch
    "eva02_base_patch16_clip_224": (768, 12, 12, 16),
    "eva02_large_patch14_clip_224": (1024, 24, 16, 14),
    "eva02_large_patch14_clip_336": (1024, 24, 16, 14),
    # The project's own, which timm does not have.
    "eva02_mini_patch8_clip_64": (128, 4, 4, 8),
    "eva02_mini_large_patch8_clip_64": (96, 8, 3, 8),
}


class RotaryAttention(TokenAttention):
    """Attention with rotary positions, without key bias and with a norm before the output."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(width, width, bias=False)
        self.k_proj = Linear(width, width, bias=False)
        self.v_proj = Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.inner_attn_ln = nn.LayerNorm(width, eps=NORM_EPS)
        self.proj = Linear(width, width)

    def forward(self, x_BLD: Tensor, rotary: Tensor) -> Tensor:
        return self.forward_rotated(x_BLD, rotary)

    def project(self, queries_BQD: Tensor, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = split_heads(linear(queries_BQD, self.q_proj.weight, self.q_bias), self.heads)
        k = split_heads(self.k_proj(x_BLD), self.heads)
        return q, k, split_heads(self.values(x_BLD), self.heads)

    def values(self, x_BLD: Tensor) -> Tensor:
        return linear(x_BLD, self.v_proj.weight, self.v_bias)

    def output(self, values_BLD: Tensor) -> Tensor:
        return self.proj(self.inner_attn_ln(values_BLD))


class SwiGLU(nn.Module):
    """The gated MLP ``w3(LN(silu(w1 x) * w2 x))``."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = Linear(width, hidden)
        self.w2 = Linear(width, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, eps=NORM_EPS)
        self.w3 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms (..., D) into (..., D)."""
        gate, values = self.w1(x), self.w2(x)
        # Without gradients the first product is overwritten, which saves memory for two more tensors.
        inplace = not torch.is_grad_enabled()
        gate = F.silu(gate, inplace=inplace)
        return self.w3(self.ffn_ln(gate.mul_(values) if inplace else gate * values))


class EvaBlock(ViTBlock):
    """A block of EVA-02, under the parameter names of its files."""

    attn: RotaryAttention
    ls_1 = ls_2 = nn.Identity()

    def __init__(self, *, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = RotaryAttention(width=width, heads=heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = SwiGLU(width=width, hidden=hidden)

    @property
    def ln_1(self) -> nn.Module:  # type: ignore[override]
        """The norm before the attention."""
        return self.norm1

    @property
    def ln_2(self) -> nn.Module:  # type: ignore[override]
        """The norm before the MLP."""
        return self.norm2

    def query_key_parameters(self) -> dict[str, list[nn.Parameter]]:
        queries = [*self.attn.q_proj.parameters(), self.attn.q_bias]
        return {QUERIES: queries, KEYS: list(self.attn.k_proj.parameters())}


class PatchEmbed(nn.Module):
    """Patch convolution under the parameter name of EVA's and timm's files."""

    def __init__(self, *, patch_size: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Patch tokens (B, N, D) of images (B, 3, H, W)."""
        return in_own_precision(self.proj, images).flatten(2).transpose(1, 2)


class EvaTransformer(TransformerTower):
    """EVA-02's image tower; parameter names are those of EVA's state dict without ``visual.``.

    The official code accepts square inputs only. Here the rotary table is generalised to any grid
    (`rotary_factors`); it equals the official one on square grids.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        embed_dim: int,
    ) -> None:
        super().__init__(
            image_size=image_size, patch_size=patch_size, width=width, embed_dim=embed_dim
        )
        self.head_channels = width // heads
        grid = image_size // patch_size
        self.patch_embed = PatchEmbed(patch_size=patch_size, width=width)
        self.cls_token = normal_parameter(1, 1, width, std=0.02)
        self.pos_embed = normal_parameter(1, 1 + grid**2, width, std=0.02)
        self.blocks = nn.ModuleList(
            EvaBlock(width=width, heads=heads, hidden=hidden) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = Linear(width, embed_dim)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[int, int]]:
        """Tokens (B, L, D) before the first block, the rotary table and the grid (h, w)."""
        grid = patch_grid(images, self.patch_size)
        patches_BND = self.patch_embed(images)
        first_B1D = self.cls_token.to(patches_BND.dtype).expand(images.shape[0], -1, -1)
        positions_LD = resample_positions(self.pos_embed[0], grid)
        tokens_BLD = torch.cat([first_B1D, patches_BND], dim=1) + positions_LD.to(patches_BND.dtype)
        return tokens_BLD, (rotary_factors(grid, self.head_channels, images.device),), grid

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)

    def project(self, tokens: Tensor) -> Tensor:
        """Final norm and projection, (..., D) -> (..., E)."""
        return self.head(self.final_norm(tokens))

    def ends(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        stem = [*self.patch_embed.parameters(), self.cls_token]
        return stem, [self.pos_embed], [*self.norm.parameters(), *self.head.parameters()]


def _supports(config: tower_kind.Config) -> bool:
    return (
        tower_kind.has_clip_text(config) and config["vision_cfg"].get("timm_model_name") in SHAPES
    )


def _build(architecture: tower_kind.Architecture, quick_gelu: bool) -> EvaTransformer:
    width, layers, heads, patch_size = SHAPES[architecture.vision["timm_model_name"]]
    return EvaTransformer(
        image_size=architecture.vision.get("image_size", 224),
        patch_size=patch_size,
        width=width,
        layers=layers,
        heads=heads,
        hidden=int(width * 4 * 2 / 3),
        embed_dim=architecture.embed_dim,
    )


def _timm_names(tensors: tower_kind.Tensors) -> dict[str, Tensor]:
    return {
        tower_kind.renamed(name, tower_kind.IN_TRUNK, tower_kind.EVA_IN_TIMM): tensor
        for name, tensor in tensors.items()
    }


EVA = tower_kind.TowerKind(
    name="EVA ViT",
    supports=_supports,
    build_image=_build,
    key_tensors={"visual.patch_embed.proj.weight": 4, "visual.head.weight": 2},
    read_sizes=functools.partial(
        tower_kind.vit_sizes, "visual.patch_embed.proj.weight", "blocks", "visual.head.weight"
    ),
    layouts={
        "official": tower_kind.Layout(write=dict),
        "open_clip": tower_kind.Layout(write=_timm_names),
    },
    positions={"visual.pos_embed": tower_kind.PositionTable(antialias=False)},
)
