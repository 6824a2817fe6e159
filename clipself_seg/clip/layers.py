"""The transformer block of OpenAI's CLIP, image and text alike, with the other ways through it.

A block can be run in four ways:
- `forward`: every token attends to every token;
- `value_path`: no token attends to any other one (CLIPSelf's dense last block, paper section 3.1);
- `observe`: extra tokens read the sequence and are read by nobody (class token of the last
  block, masked attention);
- `forward_and_observe`: both at once, tokens and observers as rows of the same matrix products.

Shapes: B batch, L tokens, Q observers, R = L + Q rows, tokens first, D width, H heads, C channels of
one head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.linear import Linear, linear

CPU_NUMBERS = 2**18  # that an activation works on at once, within a core's cache


class QuickGELU(nn.Module):
    """OpenAI's approximation ``x * sigmoid(1.702 x)``; their weights are only right with it."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, of any contiguous (..., D); without gradients it overwrites its argument."""
        if torch.is_grad_enabled():
            return x * (1.702 * x).sigmoid_()
        # A second tensor of this size would cost more than the arithmetic: fresh memory is slow.
        rows = max(1, CPU_NUMBERS // x.shape[-1]) if x.device.type == "cpu" else x.numel()
        for part in x.view(-1, x.shape[-1]).split(rows):
            part.mul_((1.702 * part).sigmoid_())
        return x


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        return x * self.gamma


def split_heads(x_BLD: Tensor, heads: int) -> Tensor:
    """(B, L, D) -> (B, H, L, C)"""
    return x_BLD.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x_BHLC: Tensor) -> Tensor:
    """(B, H, L, C) -> (B, L, D)"""
    return x_BHLC.transpose(1, 2).flatten(2)


def attend_and_observe(
    tokens_BHLC: Tensor, observers_BHQC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, mask_BQL: Tensor
) -> Tensor:
    """What queries of tokens and of observers see of the tokens, (B, R, D).

    Two attentions: the tokens' stays without a mask, and nothing of size R x R exists.
    """
    seen = F.scaled_dot_product_attention(tokens_BHLC, k_BHLC, v_BHLC)
    read = F.scaled_dot_product_attention(
        observers_BHQC, k_BHLC, v_BHLC, attn_mask=mask_BQL[:, None]
    )
    return torch.cat([merge_heads(seen), merge_heads(read)], dim=1)


class PackedAttention(nn.Module):
    """Multi-head attention with the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, x_BLD: Tensor, causal: bool = False) -> Tensor:
        """Self-attention, (B, L, D) -> (B, L, D); `causal` lets a token see only itself and earlier ones."""
        packed = linear(x_BLD, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (split_heads(part, self.heads) for part in packed.chunk(3, dim=-1))
        return self.out_proj(merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=causal)))

    def value_path(self, x_BLD: Tensor) -> Tensor:
        """What attention would give if each token saw only itself: value and output projection."""
        width = x_BLD.shape[-1]
        return self.out_proj(
            linear(x_BLD, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        )

    def observe(self, observers_BQD: Tensor, x_BLD: Tensor, mask_BQL: Tensor | None) -> Tensor:
        """Observers attend to the tokens that the boolean mask allows; (B, Q, D)."""
        q, k, v = self._project(observers_BQD, x_BLD)
        mask = None if mask_BQL is None else mask_BQL[:, None]
        return self.out_proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))

    def forward_and_observe(self, x_BRD: Tensor, mask_BQL: Tensor) -> Tensor:
        """`forward` of the tokens and `observe` of the observers behind them, (B, R, D)."""
        observers, tokens = mask_BQL.shape[1:]
        q, k, v = self._project(x_BRD, x_BRD[:, :tokens])
        q_tokens, q_observers = q.split([tokens, observers], dim=2)
        return self.out_proj(attend_and_observe(q_tokens, q_observers, k, v, mask_BQL))

    def _project(self, queries_BQD: Tensor, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, Q, C) of some rows, keys and values (B, H, L, C) of others."""
        width, weight, bias = x_BLD.shape[-1], self.in_proj_weight, self.in_proj_bias
        q = linear(queries_BQD, weight[:width], bias[:width])
        k, v = linear(x_BLD, weight[width:], bias[width:]).chunk(2, dim=-1)
        return split_heads(q, self.heads), split_heads(k, self.heads), split_heads(v, self.heads)


class SplitAttention(PackedAttention):
    """The same attention with query, key and value matrices as parameters of their own.

    So that some of them can train and the others stay (CAT-Seg fine-tunes query and value).
    """

    def __init__(self, packed: PackedAttention) -> None:
        """Takes the weights of `packed`."""
        nn.Module.__init__(self)
        self.heads = packed.heads
        for name, weight in zip(self.MATRICES, packed.in_proj_weight.detach().chunk(3)):
            self.register_parameter(name, nn.Parameter(weight.clone()))
        self.in_proj_bias = packed.in_proj_bias
        self.out_proj = packed.out_proj

    MATRICES = ("q_proj_weight", "k_proj_weight", "v_proj_weight")

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The three matrices on top of each other, (3 D, D)."""
        return torch.cat([getattr(self, name) for name in self.MATRICES])


def split_attention(module: nn.Module) -> None:
    """Turn every `PackedAttention` below `module` into a `SplitAttention`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is PackedAttention:
                setattr(parent, name, SplitAttention(child))


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, *, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = Linear(width, hidden)
        self.gelu = QuickGELU() if quick_gelu else nn.GELU()
        self.c_proj = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        return self.c_proj(self.gelu(self.c_fc(x)))


def _layer_scale(width: int, initial: float | None) -> nn.Module:
    return nn.Identity() if initial is None else LayerScale(width, initial)


class ResidualBlock(nn.Module):
    """Pre-norm attention and MLP with residuals; parameter names as in OpenAI's and open_clip's files."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        quick_gelu: bool,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = PackedAttention(width=width, heads=heads)
        self.ls_1 = _layer_scale(width, layer_scale)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width=width, hidden=int(width * mlp_ratio), quick_gelu=quick_gelu)
        self.ls_2 = _layer_scale(width, layer_scale)

    def forward(self, x_BLD: Tensor, causal: bool = False) -> Tensor:
        """(B, L, D) -> (B, L, D)"""
        return self._finish(x_BLD, self.attn(self.ln_1(x_BLD), causal))

    def value_path(self, x_BLD: Tensor, residual: Tensor | None = None) -> Tensor:
        """The block without attention, (B, L, D) -> (B, L, D): each token keeps to itself.

        `residual` takes the place of the tokens in the first sum, if it is given; any shape that
        broadcasts.
        """
        seen_BLD = self.attn.value_path(self.ln_1(x_BLD))
        return self._finish(x_BLD if residual is None else residual, seen_BLD)

    def observe(
        self, observers_BQD: Tensor, x_BLD: Tensor, mask_BQL: Tensor | None = None
    ) -> Tensor:
        """The block for tokens that read `x_BLD` and are read by nobody; (B, Q, D)."""
        seen = self.attn.observe(self.ln_1(observers_BQD), self.ln_1(x_BLD), mask_BQL)
        return self._finish(observers_BQD, seen)

    def forward_and_observe(self, x_BRD: Tensor, mask_BQL: Tensor) -> Tensor:
        """`forward` of the tokens and `observe` of the observers behind them, (B, R, D).

        The tokens come out as if alone; their keys and values are made once for both.
        """
        return self._finish(x_BRD, self.attn.forward_and_observe(self.ln_1(x_BRD), mask_BQL))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.ls_1(attended)
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """A stack of blocks under the name that checkpoints use (``transformer.resblocks.i``)."""

    def __init__(self, blocks: list[ResidualBlock]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)

    def initialise(self) -> None:
        """OpenAI's initialisation for training from scratch (CLIP paper, section 2.4 and its code)."""
        depth = len(self.resblocks)
        for block in self.resblocks:
            assert isinstance(block, ResidualBlock)
            width = block.ln_1.normalized_shape[0]
            residual_std = width**-0.5 * (2 * depth) ** -0.5
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)
            for layer in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
                nn.init.zeros_(layer.bias)
