"""The ViT of EVA-02 CLIP: rotary positions, sub-LN and SwiGLU (EVA-CLIP, arXiv 2303.15389).

Shapes: B images, L = 1 + N tokens, Q mask tokens, R = L + Q rows, tokens first, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.kind import (
    TIMM_NAMES,
    TRUNK,
    Architecture,
    Config,
    Layout,
    PositionTable,
    Sizes,
    Tensors,
    TowerKind,
    count_blocks,
    has_clip_text,
    replace,
)
from clipself_seg.clip.layers import (
    attend_with_mask_tokens,
    attention,
    head_gates,
    merge_heads,
    scale_heads,
    split_heads,
)
from clipself_seg.clip.linear import Linear, linear
from clipself_seg.clip.positions import patch_grid, resample_positions, rotary_factors, rotate
from clipself_seg.clip.runtime import normal_parameter
from clipself_seg.clip.tower import KEYS, QUERIES, TransformerTower

NORM_EPS = 1e-6
SHAPES = {  # timm name -> width, layers, heads, patch
    "eva02_base_patch16_clip_224": (768, 12, 12, 16),
    "eva02_large_patch14_clip_224": (1024, 24, 16, 14),
    "eva02_large_patch14_clip_336": (1024, 24, 16, 14),
}


class RotaryAttention(nn.Module):
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
        """Self-attention, (B, L, D) -> (B, L, D); `rotary` is the table of the grid."""
        return self._attend(rotate(self._query(x_BLD), rotary), x_BLD, rotary, None)

    def value_path(self, x_BLD: Tensor, gates_BLH: Tensor | None = None) -> Tensor:
        """Result of attention in which each token attends only to itself.

        Args:
            x_BLD: tokens.
            gates_BLH: factors of the heads' values, before the inner norm, as attention's would be; None for 1.
        """
        values_BLD = self._value(x_BLD)
        if gates_BLH is not None:
            values_BLD = scale_heads(values_BLD, gates_BLH)
        return self.output(values_BLD)

    def output(self, values_BLD: Tensor) -> Tensor:
        """Inner norm and output projection of attended values, whose heads are merged, (B, L, D)."""
        return self.proj(self.inner_attn_ln(values_BLD))

    def queries_keys_values(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all tokens, (B, H, L, C) each, without the rotation."""
        k = split_heads(self.k_proj(x_BLD), self.heads)
        return self._query(x_BLD), k, split_heads(self._value(x_BLD), self.heads)

    def forward_mask_tokens(
        self, mask_tokens_BQD: Tensor, x_BLD: Tensor, allowed_BQL: Tensor | None, rotary: Tensor
    ) -> Tensor:
        """Attention of mask tokens to the tokens that the boolean `allowed_BQL` allows, (B, Q, D)."""
        # Like the class token, its copies have no position and are not rotated.
        return self._attend(self._query(mask_tokens_BQD), x_BLD, rotary, allowed_BQL)

    def forward_with_mask_tokens(
        self, x_BRD: Tensor, allowed_BQL: Tensor, rotary: Tensor
    ) -> Tensor:
        """`forward` of the tokens and `forward_mask_tokens` of the rows after them, (B, R, D)."""
        count, tokens = allowed_BQL.shape[1:]
        q_tokens, q_mask_tokens = self._query(x_BRD).split([tokens, count], dim=2)
        k, v = self._key_and_value(x_BRD[:, :tokens], rotary)
        q_tokens = rotate(q_tokens, rotary)
        attended = attend_with_mask_tokens(q_tokens, q_mask_tokens, k, v, allowed_BQL)
        return self.proj(self.inner_attn_ln(attended))

    def _query(self, x_BLD: Tensor) -> Tensor:
        """Queries (B, H, L, C) before the rotation."""
        return split_heads(linear(x_BLD, self.q_proj.weight, self.q_bias), self.heads)

    def _value(self, x_BLD: Tensor) -> Tensor:
        return linear(x_BLD, self.v_proj.weight, self.v_bias)

    def _key_and_value(self, x_BLD: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values, (B, H, L, C) each."""
        k = rotate(split_heads(self.k_proj(x_BLD), self.heads), rotary)
        return k, split_heads(self._value(x_BLD), self.heads)

    def _attend(
        self, q_BHQC: Tensor, x_BLD: Tensor, rotary: Tensor, allowed_BQL: Tensor | None
    ) -> Tensor:
        k, v = self._key_and_value(x_BLD, rotary)
        mask = None if allowed_BQL is None else allowed_BQL[:, None]
        attended = merge_heads(attention(q_BHQC, k, v, mask=mask))
        return self.proj(self.inner_attn_ln(attended))


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


class EvaBlock(nn.Module):
    """Pre-norm attention and SwiGLU with residuals; it has the methods of `ResidualBlock`."""

    def __init__(self, *, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = RotaryAttention(width=width, heads=heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = SwiGLU(width=width, hidden=hidden)

    def forward(self, x_BLD: Tensor, rotary: Tensor) -> Tensor:
        """Updates the tokens, (B, L, D) -> (B, L, D)."""
        return self._finish(x_BLD, self.attn(self.norm1(x_BLD), rotary))

    def value_path(self, x_BLD: Tensor, residual: Tensor | None = None) -> Tensor:
        """The block without attention between tokens, as `ResidualBlock.value_path`, (B, L, D)."""
        values_BLD = self.attn.value_path(self.norm1(x_BLD))
        return self._finish(x_BLD if residual is None else residual, values_BLD)

    def values(self, x_BLD: Tensor, *gate: Tensor) -> Tensor:
        """What the block would add without attention between tokens and MLP, as `ResidualBlock.values`, (B, L, D)."""
        normed_BLD = self.norm1(x_BLD)
        gates_BLH = head_gates(normed_BLD, *gate) if gate else None
        return self.attn.value_path(normed_BLD, gates_BLH)

    def queries_keys_values(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all tokens, (B, H, L, C) each, without the rotation."""
        return self.attn.queries_keys_values(self.norm1(x_BLD))

    def finish(self, values_BLD: Tensor, residual: Tensor | None) -> Tensor:
        """The block behind its attention, as `ResidualBlock.finish`, (B, L, D)."""
        attended_BLD = self.attn.output(values_BLD)
        return attended_BLD if residual is None else self._finish(residual, attended_BLD)

    def query_key_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of queries and keys alone, which `value_path` and `values` do not depend on, by feature."""
        attention: Any = self.attn
        queries = [attention.q_proj.weight, attention.q_bias]
        return {QUERIES: queries, KEYS: [attention.k_proj.weight]}

    def mlp_parameters(self) -> list[nn.Parameter]:
        """Parameters of the MLP and its norm, which `values` does not depend on."""
        return [*self.norm2.parameters(), *self.mlp.parameters()]

    def forward_mask_tokens(
        self, mask_tokens_BQD: Tensor, x_BLD: Tensor, allowed_BQL: Tensor | None, rotary: Tensor
    ) -> Tensor:
        """The block for mask tokens alone, as `ResidualBlock.forward_mask_tokens`, (B, Q, D)."""
        attended_BQD = self.attn.forward_mask_tokens(
            self.norm1(mask_tokens_BQD), self.norm1(x_BLD), allowed_BQL, rotary
        )
        return self._finish(mask_tokens_BQD, attended_BQD)

    def forward_with_mask_tokens(
        self, x_BRD: Tensor, allowed_BQL: Tensor, rotary: Tensor
    ) -> Tensor:
        """`forward` of the tokens and `forward_mask_tokens` of the rows after them, (B, R, D)."""
        attended_BRD = self.attn.forward_with_mask_tokens(self.norm1(x_BRD), allowed_BQL, rotary)
        return self._finish(x_BRD, attended_BRD)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + attended
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Patch convolution under the parameter name of EVA's and timm's files."""

    def __init__(self, *, patch_size: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Patch tokens (B, N, D) of images (B, 3, H, W)."""
        return self.proj(images).flatten(2).transpose(1, 2)


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

    def project(self, tokens: Tensor) -> Tensor:
        """Final norm and projection, (..., D) -> (..., E)."""
        return self.head(self.norm(tokens))

    def ends(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        """As `TransformerTower.ends`."""
        stem = [*self.patch_embed.parameters(), self.cls_token]
        return stem, [self.pos_embed], [*self.norm.parameters(), *self.head.parameters()]


def _supports(config: Config) -> bool:
    return has_clip_text(config) and config["vision_cfg"].get("timm_model_name") in SHAPES


def _sizes(architecture: Architecture) -> Sizes:
    width, layers, _, patch_size = SHAPES[architecture.vision["timm_model_name"]]
    return Sizes(width, layers, patch_size, architecture.embed_dim)


def _build(architecture: Architecture, quick_gelu: bool) -> EvaTransformer:
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


def _read_sizes(tensors: Tensors) -> Sizes:
    kernel = tensors["visual.patch_embed.proj.weight"].shape
    layers = count_blocks(tensors, "blocks")
    return Sizes(kernel[0], layers, kernel[-1], tensors["visual.head.weight"].shape[0])


def _timm_names(tensors: Tensors) -> dict[str, Tensor]:
    return {
        replace(name.replace("visual.", TRUNK, 1), TIMM_NAMES): tensor
        for name, tensor in tensors.items()
    }


EVA = TowerKind(
    name="EVA ViT",
    supports=_supports,
    sizes=_sizes,
    build_image=_build,
    key_tensors={"visual.patch_embed.proj.weight": 4, "visual.head.weight": 2},
    read_sizes=_read_sizes,
    layouts={
        "official": Layout(write=dict),
        "open_clip": Layout(write=_timm_names),
    },
    positions={"visual.pos_embed": PositionTable(antialias=False)},
)
