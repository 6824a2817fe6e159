"""Transformer blocks of images and texts, with the dense and masked variants of their attention.

From small to large: activation and scale, attention of heads, the attentions of a block, MLPs, `ViTBlock` with what all
blocks can do, OpenAI's block (`ResidualBlock`) and stacks of it. Mask tokens are copies of the class token that attend
to the tokens that their masks allow; no token attends to them.

Shapes: B batch, L tokens, Q mask tokens, R = L + Q rows, tokens first, D width, H heads, C channels of
one head.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends.cuda import flash_sdp_enabled

from clipself_seg.clip.levers import Lever, processor, stock
from clipself_seg.clip.linear import CONVOLUTION, Linear, linear
from clipself_seg.clip.positions import rotate
from clipself_seg.clip.precision import SharedSetting, full_precision
from clipself_seg.clip.runtime import chunk_size, on_cpu
from clipself_seg.private_torch import functorch_may_be_active

MANY_TOKENS = 2048  # for which heads of their own memory save a CPU more than the copies cost
CPU_NUMBERS = 2**19  # numbers that each thread processes at once, about a core's cache


class QuickGELU(nn.Module):
    """OpenAI's approximation ``x * sigmoid(1.702 x)``; their weights are only right with it."""

    def forward(self, x: Tensor) -> Tensor:
        """Activation of contiguous (..., D), elementwise; without gradients it overwrites `x`."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return x * (1.702 * x).sigmoid_()
        # Fresh memory for a second tensor of this size would take longer than the arithmetic.
        numbers = CPU_NUMBERS * torch.get_num_threads()
        rows = chunk_size(x.device, numbers // x.shape[-1], 2 * x.shape[-1])
        for part in x.view(-1, x.shape[-1]).split(rows):
            part.mul_((1.702 * part).sigmoid_())
        return x


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels of (..., D)."""
        return x * self.gamma


def split_heads(x_BLD: Tensor, heads: int) -> Tensor:
    """Splits channels into heads, (B, L, D) -> (B, H, L, C)."""
    return x_BLD.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x_BHLC: Tensor) -> Tensor:
    """Merges heads into channels, (B, H, L, C) -> (B, L, D)."""
    return x_BHLC.transpose(1, 2).flatten(2)


def attention(
    q_BHQC: Tensor,
    k_BHLC: Tensor,
    v_BHLC: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Softmax attention of torch, (B, H, Q, C).

    Heads are slices of the tokens' channels, and rows that far apart share few places of a CPU's cache: with many
    tokens the heads are copied apart first, with the same bits. Where `ATTENTION` is chosen oneDNN multiplies, and
    bfloat16 is computed in float32, with smaller errors than torch's. With gradients that is done for float32 alone,
    without masks and autocast. The result has the type of the queries, also under autocast.

    Args:
        q_BHQC: queries.
        k_BHLC: keys.
        v_BHLC: values.
        mask: boolean, True where a query may attend to a key, or what is added to the scores; it broadcasts.
        causal: True if a token attends to itself and earlier ones alone.
    """
    q, k, v, dtype = q_BHQC, k_BHLC, v_BHLC, q_BHQC.dtype
    # On a CPU first: no compiler reads the rest.
    many = on_cpu(q) and not stock.get() and min(q.shape[2], k.shape[2]) >= MANY_TOKENS
    if many and torch.is_grad_enabled():
        full = q.dtype == k.dtype == v.dtype == torch.float32
        traced = functorch_may_be_active() or torch.jit.is_tracing()
        plain = mask is None and not causal and not torch.is_autocast_enabled("cpu")
        # torch's other kernels, which somebody may have asked for, have second derivatives.
        if full and plain and not traced and flash_sdp_enabled() and ATTENTION.chosen:
            return _Attention.apply(q.contiguous(), k.contiguous(), v.contiguous())
    elif many and dtype in (torch.float32, torch.bfloat16) and ATTENTION.chosen:
        q, k, v = (x.contiguous().float() for x in (q, k, v))
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
        with full_precision(q.device), ATTENTION.used():
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return attended.to(dtype)
    elif many:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def _suits() -> bool:
    """True if oneDNN's products are quicker and in float32; with AMX they would be in bfloat16."""
    return CONVOLUTION.chosen and "amx_bf16" not in processor()


def _results() -> tuple[Tensor, Tensor]:
    """Attention over some tokens and its gradients as torch computes them now, and in float64."""
    draw = torch.Generator().manual_seed(0)
    q, k, v, g = inputs = torch.randn(4, 1, 1, 1024, 64, generator=draw, dtype=torch.float32)
    attended, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    gradients = _backward(g, q, k, v, attended, sums)
    *leaves, gradient = (x.double().requires_grad_() for x in inputs)
    with torch.enable_grad():
        expected = F.scaled_dot_product_attention(*leaves)
    exact = torch.autograd.grad(expected, leaves, gradient)
    own = F.scaled_dot_product_attention(q, k, v)
    return torch.cat([own, *gradients]), torch.cat([expected.detach(), *exact])


# torch's kernel of attention asks oneDNN for its products where float32 may be computed in bfloat16. A processor with
# AVX-512 and without AMX has no faster way in bfloat16, and oneDNN computes them in float32.
_PRODUCTS = SharedSetting(getattr(torch.backends.mkldnn, "matmul", None))
ATTENTION = Lever(_suits, _results, lambda: _PRODUCTS.set_to("fp32_precision", "bf16"))


def _backward(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values: without dropout, not causal."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    gradients: tuple[Tensor, Tensor, Tensor] = kernel(*tensors, 0.0, False)
    return gradients


class _Attention(torch.autograd.Function):
    """Attention of contiguous heads whose products, and those of its gradient, are oneDNN's."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with ATTENTION.used():
            attended, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        ctx.save_for_backward(q, k, v, attended, sums)
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with ATTENTION.used():
            return _backward(gradient.contiguous(), *ctx.saved_tensors)


def gated(values_BLD: Tensor, x_BLD: Tensor, weight_HD: Tensor, bias_H: Tensor) -> Tensor:
    """Values (B, L, D), each head and token multiplied by its gate, ``2 sigmoid(W x + b)`` in (0, 2).

    It is 1 where weight and bias are 0, and has a gradient there, which it would not have beside a large bias.
    """
    gates_BLH = 2 * linear(x_BLD, weight_HD, bias_H).sigmoid()
    heads_BLHC = values_BLD.unflatten(-1, (len(bias_H), -1))
    return (heads_BLHC * gates_BLH[..., None]).flatten(-2)


class TokenAttention(nn.Module, abc.ABC):
    """Multi-head attention with its dense and masked variants; subclasses have the projections.

    The last argument of some methods is the table of `positions.rotary_factors` by which queries and keys are turned,
    or nothing.
    """

    heads: int

    @abc.abstractmethod
    def project(self, queries_BQD: Tensor, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, Q, C) of `queries_BQD`, keys and values (B, H, L, C) of `x_BLD`, none of them turned."""

    @abc.abstractmethod
    def values(self, x_BLD: Tensor) -> Tensor:
        """Values (B, L, D), heads merged."""

    @abc.abstractmethod
    def output(self, values_BLD: Tensor) -> Tensor:
        """Output projection of attended values, whose heads are merged, (B, L, D)."""

    def forward_rotated(self, x_BLD: Tensor, rotary: Tensor) -> Tensor:
        """Self-attention of turned queries and keys, (B, L, D) -> (B, L, D)."""
        q, k, v = self.project(x_BLD, x_BLD)
        return self.output(merge_heads(attention(rotate(q, rotary), rotate(k, rotary), v)))

    def forward_mask_tokens(
        self, mask_tokens_BQD: Tensor, x_BLD: Tensor, allowed_BQL: Tensor | None, *rotary: Tensor
    ) -> Tensor:
        """Attention of mask tokens to the tokens that the boolean `allowed_BQL` allows, (B, Q, D)."""
        # Like the class token, its copies have no position and are not turned.
        q, k, v = self.project(mask_tokens_BQD, x_BLD)
        mask = None if allowed_BQL is None else allowed_BQL[:, None]
        return self.output(merge_heads(attention(q, _turned(k, rotary), v, mask=mask)))

    def forward_with_mask_tokens(
        self, x_BRD: Tensor, allowed_BQL: Tensor, *rotary: Tensor
    ) -> Tensor:
        """Self-attention of the tokens, and `forward_mask_tokens` of the rows after them, (B, R, D).

        These are two attentions: the tokens' needs no mask, and nothing of size R x R is computed.
        """
        count, tokens = allowed_BQL.shape[1:]
        q, k, v = self.project(x_BRD, x_BRD[:, :tokens])
        q_tokens, q_mask_tokens = q.split([tokens, count], dim=2)
        k = _turned(k, rotary)
        attended = attention(_turned(q_tokens, rotary), k, v)
        masked = attention(q_mask_tokens, k, v, mask=allowed_BQL[:, None])
        return self.output(torch.cat([merge_heads(attended), merge_heads(masked)], dim=1))


def _turned(heads_BHLC: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
    return rotate(heads_BHLC, *rotary) if rotary else heads_BHLC


class PackedAttention(TokenAttention):
    """Attention with the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, x_BLD: Tensor, causal: bool = False, keys_BL: Tensor | None = None) -> Tensor:
        """Self-attention, (B, L, D) -> (B, L, D).

        Args:
            x_BLD: tokens.
            causal: True if a token attends to itself and earlier ones alone.
            keys_BL: boolean, False for tokens that none attends to; None for none of them. Not with `causal`.
        """
        packed = linear(x_BLD, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (split_heads(part, self.heads) for part in packed.chunk(3, dim=-1))
        mask = None if keys_BL is None else keys_BL[:, None, None]
        return self.out_proj(merge_heads(attention(q, k, v, mask=mask, causal=causal)))

    def project(self, queries_BQD: Tensor, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        width = x_BLD.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        q = linear(queries_BQD, weight[:width], bias[:width])
        k, v = linear(x_BLD, weight[width:], bias[width:]).chunk(2, dim=-1)
        return split_heads(q, self.heads), split_heads(k, self.heads), split_heads(v, self.heads)

    def values(self, x_BLD: Tensor) -> Tensor:
        first = 2 * x_BLD.shape[-1]
        return linear(x_BLD, self.in_proj_weight[first:], self.in_proj_bias[first:])

    def output(self, values_BLD: Tensor) -> Tensor:
        return self.out_proj(values_BLD)


class SplitAttention(PackedAttention):
    """The same attention with separate parameters for the query, key and value matrices.

    Some of them can then train while others stay frozen (CAT-Seg fine-tunes query and value).
    """

    def __init__(self, packed: PackedAttention) -> None:
        """
        Args:
            packed: attention whose weights are copied, and whose biases and output projection are kept.
        """
        nn.Module.__init__(self)
        self.heads = packed.heads
        for name, weight in zip(self.MATRICES, packed.in_proj_weight.detach().chunk(3)):
            self.register_parameter(name, nn.Parameter(weight.clone()))
        self.in_proj_bias = packed.in_proj_bias
        self.out_proj = packed.out_proj

    MATRICES = ("q_proj_weight", "k_proj_weight", "v_proj_weight")

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """Query, key and value matrices stacked, (3 D, D)."""
        return torch.cat([getattr(self, name) for name in self.MATRICES])


def split_attention(module: nn.Module) -> None:
    """Replaces every `PackedAttention` below `module` by a `SplitAttention`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is PackedAttention:
                setattr(parent, name, SplitAttention(child))


def packed_matrices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with the matrices of every `SplitAttention` stacked as in a `PackedAttention`, whose names files have."""
    packed = dict(tensors)
    first, *others = SplitAttention.MATRICES
    for name in tensors:
        prefix, _, leaf = name.rpartition(".")
        if leaf == first:
            parts = [packed.pop(f"{prefix}.{matrix}") for matrix in (first, *others)]
            packed[f"{prefix}.in_proj_weight"] = torch.cat(parts)
    return packed


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self, *, width: int, hidden: int, quick_gelu: bool, approximate: str = "none"
    ) -> None:
        super().__init__()
        self.c_fc = Linear(width, hidden)
        self.gelu: nn.Module = QuickGELU() if quick_gelu else nn.GELU(approximate)
        self.c_proj = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms (..., D) into (..., D)."""
        return self.c_proj(self.gelu(self.c_fc(x)))


class TwoLayers(nn.Module):
    """Two linear layers with GELU between them, under timm's names."""

    def __init__(
        self,
        *,
        width: int,
        hidden: int,
        out: int | None = None,
        bias: bool = True,
        approximate: str = "none",
    ) -> None:
        """
        Args:
            width: channels that go in.
            hidden: channels between the layers.
            out: channels that come out; None for as many as go in.
            bias: True if the second layer has a bias.
            approximate: of GELU, "none" or "tanh".
        """
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width if out is None else out, bias=bias)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """Transforms (..., width) into (..., out)."""
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class ViTBlock(nn.Module, abc.ABC):
    """Pre-norm attention and MLP with residuals; subclasses have its parts, under the names of their files.

    Attributes:
        ln_1, ln_2: norms before the attention and before the MLP.
        ls_1, ls_2: factors of their branches.
    """

    ln_1: nn.Module
    attn: TokenAttention
    ls_1: nn.Module
    ln_2: nn.Module
    mlp: nn.Module
    ls_2: nn.Module

    def mlp_parameters(self) -> list[nn.Parameter]:
        """Parameters of the MLP, its norm and its factor, which `values` does not depend on."""
        parts = (self.ln_2, self.mlp, self.ls_2)
        return [parameter for part in parts for parameter in part.parameters()]

    def query_key_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of queries and of keys alone by feature; none where one matrix has them with the values."""
        return {}

    def forward(self, x_BLD: Tensor, *others: Tensor | bool) -> Tensor:
        """Updates the tokens, each of which attends to every one, (B, L, D) -> (B, L, D).

        Args:
            x_BLD: tokens.
            others: further arguments of the attention.
        """
        return self._finish(x_BLD, self.attn(self.ln_1(x_BLD), *others))

    def value_path(self, x_BLD: Tensor, residual: Tensor | None = None) -> Tensor:
        """The block without attention between tokens (CLIPSelf's dense last block, section 3.1), same shape.

        Args:
            x_BLD: tokens.
            residual: added to the attention branch in place of the tokens, in any shape that
                broadcasts; None for the tokens.
        """
        attended_BLD = self.attn.output(self.attn.values(self.ln_1(x_BLD)))
        return self._finish(x_BLD if residual is None else residual, attended_BLD)

    def values(self, x_BLD: Tensor, *gate: Tensor) -> Tensor:
        """Output of the attention branch where every token attends to itself alone, without the MLP, (B, L, D).

        Args:
            x_BLD: tokens.
            gate: weight (H, D) and bias (H,) of `gated`, which the normalised tokens decide; nothing for 1.
        """
        normed_BLD = self.ln_1(x_BLD)
        values_BLD = self.attn.values(normed_BLD)
        if gate:
            values_BLD = gated(values_BLD, normed_BLD, *gate)
        return self.ls_1(self.attn.output(values_BLD))

    def queries_keys_values(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all tokens, (B, H, L, C) each, before positions turn them.

        With `finish` one half of `forward` around attention, for an attention of another kind.
        """
        normed_BLD = self.ln_1(x_BLD)
        return self.attn.project(normed_BLD, normed_BLD)

    def finish(self, values_BLD: Tensor, residual: Tensor | None) -> Tensor:
        """The block behind its attention, (B, L, D).

        Args:
            values_BLD: attended values, heads merged, before the output projection.
            residual: tokens that they are added to, and then the MLP's result; None for neither.
        """
        attended_BLD = self.attn.output(values_BLD)
        if residual is None:
            return self.ls_1(attended_BLD)
        return self._finish(residual, attended_BLD)

    def forward_mask_tokens(
        self,
        mask_tokens_BQD: Tensor,
        x_BLD: Tensor,
        allowed_BQL: Tensor | None = None,
        *rotary: Tensor,
    ) -> Tensor:
        """The block for mask tokens alone, (B, Q, D) -> (B, Q, D).

        Args:
            mask_tokens_BQD: copies of the class token, or the class token itself.
            x_BLD: tokens before the block, to which the mask tokens attend.
            allowed_BQL: boolean, True where a mask token may attend to a token; None allows all.
            rotary: as for `TokenAttention`.
        """
        attended_BQD = self.attn.forward_mask_tokens(
            self.ln_1(mask_tokens_BQD), self.ln_1(x_BLD), allowed_BQL, *rotary
        )
        return self._finish(mask_tokens_BQD, attended_BQD)

    def forward_with_mask_tokens(
        self, x_BRD: Tensor, allowed_BQL: Tensor, *rotary: Tensor
    ) -> Tensor:
        """`forward` of the tokens and `forward_mask_tokens` of the rows after them, (B, R, D).

        The tokens' results are those of `forward`; their keys and values are computed once for both.
        """
        attended_BRD = self.attn.forward_with_mask_tokens(self.ln_1(x_BRD), allowed_BQL, *rotary)
        return self._finish(x_BRD, attended_BRD)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.ls_1(attended)
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class ResidualBlock(ViTBlock):
    """The block of OpenAI's CLIP and of its text tower, under the parameter names of OpenAI and open_clip."""

    ln_1: nn.LayerNorm
    attn: PackedAttention
    mlp: MLP

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        quick_gelu: bool = False,
        layer_scale: float | None = None,
        eps: float = 1e-5,
        approximate: str = "none",
    ) -> None:
        """
        Args:
            width: D.
            heads: number of heads.
            mlp_ratio: width of the MLP in D.
            quick_gelu: True if the MLP has QuickGELU.
            layer_scale: factor of both branches at first; None for none.
            eps: of the norms.
            approximate: of GELU, "none" or "tanh".
        """
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.attn = PackedAttention(width=width, heads=heads)
        self.ls_1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(
            width=width,
            hidden=int(width * mlp_ratio),
            quick_gelu=quick_gelu,
            approximate=approximate,
        )
        self.ls_2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)


class Transformer(nn.Module):
    """Stack of blocks under the parameter names of checkpoints (``transformer.resblocks.i``)."""

    def __init__(self, layers: int, **sizes: Any) -> None:
        """
        Args:
            layers: number of blocks.
            sizes: arguments of `ResidualBlock`.
        """
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(**sizes) for _ in range(layers))


def initialise_blocks(blocks: nn.ModuleList) -> None:
    """Applies OpenAI's initialisation of `ResidualBlock`s for training from scratch (CLIP paper, 2.4; its code)."""
    for block in blocks:
        assert isinstance(block, ResidualBlock)
        width = block.attn.out_proj.in_features
        residual_std = width**-0.5 * (2 * len(blocks)) ** -0.5
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)
        for layer in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
            nn.init.zeros_(layer.bias)
