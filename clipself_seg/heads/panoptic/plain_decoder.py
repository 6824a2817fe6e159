"""Masks from a frozen ViT alone: the decoder of Plain Mask Transformers (PMT, arXiv 2603.25398), with open words.

Some blocks of the tower are tapped. Each tap has a batch norm and a small MLP, and their sum is one map of tokens.
Learned queries stand before these tokens, and plain transformer blocks run over both, so that patches attend to queries
too. Queries then give embeddings, patches are enlarged, and masks are the products of both: no pyramid, no cross
attention, nothing but matrix products. Parameters have the names of PMT's released decoders, but for the head that
compares masks with texts, which is FC-CLIP's (arXiv 2308.02487) and which they do not have.

In training a query may be kept inside its mask, less and less often (`mask_probabilities`); in evaluation nothing is
masked or random. PMT rescales positions at random in training where the tower has no rotary ones; here, as in its
released models, they are never rescaled.

Shapes: B images, Q queries, P tokens before the patches (0 for maps), N = h * w patches, T = P + N tokens of a tap,
    L = Q + T tokens of a block, D width, H heads, C = D / H channels of a head, S texts, K classes, E width of a text
    embedding, 2^d how many times a side of the grid a side of a mask is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.layers import attention, merge_heads, split_heads
from clipself_seg.clip.linear import Linear
from clipself_seg.clip.runtime import constant
from clipself_seg.clip.tower import Grid, as_map
from clipself_seg.clip.tower_kind import LARGEST_SCALE
from clipself_seg.errors import InputError
from clipself_seg.heads.maps import BatchNorm
from clipself_seg.heads.panoptic import generator

ROTARY_BASE = 100.0
DOUBLING_EPS = 1e-6
POWER = 0.9  # of the probability's decline
FIRST_BLOCK = 3000  # steps after which the first block masks nothing, 15 % of a short training


@dataclasses.dataclass(frozen=True)
class PlainDecoderSizes:
    """Widths and depths of the decoder; the defaults are those of PMT on a ViT-B/16.

    Attributes:
        width: number of channels D, those of the tower.
        heads: number of heads H of every attention, those of the tower.
        queries: number of queries Q.
        layers: number of blocks.
        hidden: hidden width of the blocks' MLPs.
        patch: stride in pixels of the taps, which decides how often they are doubled.
    """

    width: int = 768
    heads: int = 12
    queries: int = 200
    layers: int = 6
    hidden: int = 768
    patch: int = 16

    @property
    def doublings(self) -> int:
        """d, at least 1: masks have a quarter of the stride of the next power of two (PMT: of the one before)."""
        return max(1, (self.patch - 1).bit_length() - 2)


def rotary_table(grid: Grid, head_channels: int, first: int, device: torch.device) -> Tensor:
    """Cosines and sines of the angles by which tokens are turned, (2, first + N, C / 2) float32.

    Rows and columns are numbered from -1 to 1 at the outer edges of any grid; the first half of the angles is the
    row's, the second half the column's (DINOv3).

    Args:
        grid: rows and columns (h, w) of the patches.
        head_channels: C, a multiple of 4.
        first: number of tokens before the patches, whose angles are 0.
        device: device of the table.
    """
    per_axis = head_channels // 4
    steps = torch.arange(per_axis, device=device, dtype=torch.float32) / per_axis
    turns = 2 * math.pi * ROTARY_BASE**-steps
    rows, columns = (
        (2 * (torch.arange(side, device=device) + 0.5) / side - 1)[:, None] * turns for side in grid
    )
    angles_hwA = torch.cat(
        [rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)], dim=-1
    )
    angles_TA = F.pad(angles_hwA.flatten(0, 1), (0, 0, first, 0))
    return torch.stack([angles_TA.cos(), angles_TA.sin()])


def turn_halves(heads_BHLC: Tensor, rotary: Tensor) -> Tensor:
    """Turns channel i of each head with channel i + C / 2 by the angles of `rotary_table`, in float32."""
    cosine, sine = rotary
    u, v = heads_BHLC.float().chunk(2, dim=-1)
    turned = torch.cat([u * cosine - v * sine, v * cosine + u * sine], dim=-1)
    return turned.to(heads_BHLC.dtype)


class SelfAttention(nn.Module):
    """Self-attention of queries and patches with turned queries and keys, and without a bias of keys."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width, bias=False)
        self.v_proj = Linear(width, width)
        self.o_proj = Linear(width, width)

    def forward(self, x_BLD: Tensor, rotary: Tensor, allowed_BQL: Tensor | None) -> Tensor:
        """Attended tokens (B, L, D).

        Args:
            x_BLD: tokens, the queries first.
            rotary: `rotary_table` of all of them.
            allowed_BQL: boolean, which tokens each query may attend to, itself at least; None allows all. All other
                rows attend to everything.
        """
        q, k, v = (
            split_heads(p(x_BLD), self.heads) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = turn_halves(q, rotary), turn_halves(k, rotary)
        if allowed_BQL is None:
            attended = attention(q, k, v)
        else:
            # Two attentions, so that nothing of size L x L is in memory.
            queries = allowed_BQL.shape[1]
            masked = attention(q[:, :, :queries], k, v, mask=allowed_BQL[:, None])
            attended = torch.cat([masked, attention(q[:, :, queries:], k, v)], dim=2)
        return self.o_proj(merge_heads(attended))


class FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.up_proj = Linear(width, hidden)
        self.down_proj = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms (..., D) into (..., D)."""
        return self.down_proj(F.gelu(self.up_proj(x)))


class Scale(nn.Module):
    """A learned factor for each channel, 1 at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels of (..., D)."""
        return x * self.lambda1


class Block(nn.Module):
    """Pre-norm attention and MLP with scaled residual branches (DINOv3's block)."""

    def __init__(self, *, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width=width, heads=heads)
        self.layer_scale1 = Scale(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width=width, hidden=hidden)
        self.layer_scale2 = Scale(width)

    def forward(self, x_BLD: Tensor, rotary: Tensor, allowed_BQL: Tensor | None = None) -> Tensor:
        """Updates the tokens, (B, L, D) -> (B, L, D); the arguments are those of `SelfAttention.forward`."""
        attended = self.attention(self.norm1(x_BLD), rotary, allowed_BQL)
        x_BLD = x_BLD + self.layer_scale1(attended)
        return x_BLD + self.layer_scale2(self.mlp(self.norm2(x_BLD)))


class Doubling(nn.Module):
    """A map of twice the size: transposed convolution, GELU, a 3 x 3 for each channel, norm of the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.LayerNorm(width, eps=DOUBLING_EPS)

    def forward(self, maps_BDhw: Tensor) -> Tensor:
        """Maps (B, D, 2 h, 2 w)."""
        larger = self.conv2(F.gelu(self.conv1(maps_BDhw)))
        return self.norm(larger.movedim(1, -1)).movedim(-1, 1)


class TokenDecoder(nn.Module):
    """Fusion of taps, blocks, doublings and heads, under the names of PMT's files below ``decoder.``.

    Attributes:
        attn_mask_probs: probability of each block that a query is kept inside its mask, in training.
    """

    attn_mask_probs: Tensor

    def __init__(
        self, sizes: PlainDecoderSizes, *, channels: Sequence[int], text_width: int
    ) -> None:
        """
        Args:
            sizes: widths and depths.
            channels: of each tap.
            text_width: width E of the embeddings that are compared with texts.
        """
        super().__init__()
        width = sizes.width
        self.head_channels = width // sizes.heads
        self.inputs = nn.ModuleList(
            nn.Identity() if wide == width else Linear(wide, width) for wide in channels
        )
        self.lateral_projections = nn.ModuleList(
            nn.Sequential(Linear(width, width // 2), nn.GELU(), Linear(width // 2, width))
            for _ in channels
        )
        self.scalers = nn.ParameterList(nn.Parameter(torch.ones(width)) for _ in channels)
        self.q = nn.Embedding(sizes.queries, width)
        self.blocks = nn.ModuleList(
            Block(width=width, heads=sizes.heads, hidden=sizes.hidden) for _ in range(sizes.layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.upscale = nn.Sequential(*(Doubling(width) for _ in range(sizes.doublings)))
        self.mask_head = nn.Sequential(
            Linear(width, width), nn.GELU(), Linear(width, width), nn.GELU(), Linear(width, width)
        )
        self.mask_pooling_proj = nn.Sequential(nn.LayerNorm(width), Linear(width, width))
        self.class_embed = generator.MLP(width, text_width)
        self.logit_scale = generator.initial_logit_scale()
        self.register_buffer("attn_mask_probs", torch.ones(sizes.layers))

    def fuse(self, taps: Sequence[Tensor]) -> Tensor:
        """Sum of the taps, each with what its MLP adds and with a factor for each channel, (B, T, D).

        Args:
            taps: tokens (B, T, channels) of each, behind its batch norm.
        """
        parts = []
        for tap, project, mlp, scale in zip(
            taps, self.inputs, self.lateral_projections, self.scalers, strict=True
        ):
            x_BTD = project(tap)
            parts.append(scale * (x_BTD + mlp(x_BTD)))
        return torch.stack(parts).sum(dim=0)

    def forward(
        self, tokens_BTD: Tensor, grid: Grid, masked: bool
    ) -> list[generator.QueryPrediction]:
        """The last prediction, and with `masked` those before each block first.

        Args:
            tokens_BTD: fused taps, the patches last.
            grid: rows and columns (h, w) of the patches.
            masked: True if queries attend inside their masks, as `attn_mask_probs` says.
        """
        first = len(self.q.weight) + tokens_BTD.shape[1] - grid[0] * grid[1]
        rotary = rotary_table(grid, self.head_channels, first, tokens_BTD.device)
        start_BQD = self.q.weight.to(tokens_BTD.dtype).expand(len(tokens_BTD), -1, -1)
        x_BLD = torch.cat([start_BQD, tokens_BTD], dim=1)
        predictions = []
        for block, probability in zip(self.blocks, self.attn_mask_probs):
            allowed_BQL = None
            if masked:
                predictions.append(self._predict(x_BLD, grid))
                allowed_BQL = self._allowed(predictions[-1].mask_logits, grid, first, probability)
            x_BLD = block(x_BLD, rotary, allowed_BQL)
        return [*predictions, self._predict(x_BLD, grid)]

    @torch.no_grad()
    def _allowed(self, mask_logits: Tensor, grid: Grid, first: int, probability: Tensor) -> Tensor:
        """Mask of the tokens that a query attends to, bool (B, Q, L): all before the patches, and those in its mask.

        With a probability of 1 - `probability` a query attends to all patches. One whose mask has no patch is not
        opened for that.
        """
        small = F.interpolate(mask_logits, grid, mode="bilinear", align_corners=False)
        inside_BQN = small.flatten(2) > 0
        # Drawn for a probability of 1 too, which keeps all: a GPU is not waited for.
        kept_BQ = torch.rand(inside_BQN.shape[:2], device=inside_BQN.device) <= probability
        return F.pad(inside_BQN | ~kept_BQ[..., None], (first, 0), value=True)

    def _predict(self, x_BLD: Tensor, grid: Grid) -> generator.QueryPrediction:
        """Prediction of the tokens (B, L, D) before or behind a block."""
        x_BLD = self.decoder_norm(x_BLD)
        states_BQD = x_BLD[:, : len(self.q.weight)]
        patches_BND = x_BLD[:, x_BLD.shape[1] - grid[0] * grid[1] :]
        features_BDmn = self.upscale(as_map(patches_BND, grid))
        products = self.mask_head(states_BQD) @ features_BDmn.flatten(2)
        masks_BQmn = products.unflatten(2, features_BDmn.shape[2:])
        embeddings = self._embed(states_BQD, features_BDmn, masks_BQmn)
        return generator.QueryPrediction(states_BQD, masks_BQmn, embeddings, None)

    def _embed(self, states_BQD: Tensor, features_BDmn: Tensor, masks_BQmn: Tensor) -> Tensor:
        """Embeddings (B, Q, E) of queries and their masks, of any norm."""
        pooled_BQD = self.mask_pooling_proj(generator.pool_masks(features_BDmn, masks_BQmn))
        return self.class_embed(pooled_BQD + states_BQD)


class PlainDecoder(generator.Generator):
    """PMT's decoder with FC-CLIP's scores: in CLIP's own space, where void is a learned vector.

    Attributes:
        sizes: widths and depths.
        masked_attention: True if queries attend inside their masks in training.
        names: names of the taps, in order.
    """

    variant = "fcclip"
    in_clip_space = True

    def __init__(
        self,
        *,
        channels: Mapping[str, int],
        text_width: int = 512,
        sizes: PlainDecoderSizes,
        masked_attention: bool = False,
    ) -> None:
        """
        Args:
            channels: channels of each tap by name. Those of another width than the decoder's, such as ``dense``, have a
                linear layer to it.
            text_width: width E of CLIP's text embeddings.
            sizes: widths and depths.
            masked_attention: True if queries attend inside their masks in training, where every block then predicts.

        Raises:
            InputError: the width does not fit the heads.
        """
        super().__init__()
        self.sizes = sizes
        if sizes.width % (4 * sizes.heads):
            raise InputError(
                f"plain decoder: a width of {sizes.width} has to be a multiple of 4 channels for each of "
                f"the {sizes.heads} heads"
            )
        self.masked_attention = masked_attention
        self.names = list(channels)
        self.bn = nn.ModuleList(BatchNorm(wide) for wide in channels.values())
        self.decoder = TokenDecoder(sizes, channels=[*channels.values()], text_width=text_width)
        self.void_embedding = nn.Embedding(1, text_width)

    def forward(
        self, features: Mapping[str, Tensor], every_layer: bool = False
    ) -> list[generator.QueryPrediction]:
        """The last prediction; with `every_layer`, in training with masked attention, those before each block first.

        Args:
            features: maps (B, channels, h, w) of the taps by name, all of one grid, behind the tower's final norm.
            every_layer: return all predictions, for losses on all of them.
        """
        maps = [features[name] for name in self.names]
        height, width = maps[0].shape[2:]
        tokens = [one.flatten(2).transpose(1, 2) for one in maps]
        predictions = self.decode(tokens, (height, width))
        return predictions if every_layer else predictions[-1:]

    def decode(self, taps: Sequence[Tensor], grid: Grid) -> list[generator.QueryPrediction]:
        """All predictions that are made.

        Args:
            taps: tokens (B, T, channels) of each tap, the patches last, row by row.
            grid: rows and columns (h, w) of the patches.
        """
        fused_BTD = self.decoder.fuse(self.normalise(taps))
        return self.decoder(fused_BTD, grid, self.training and self.masked_attention)

    def normalise(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """Taps (B, T, channels) behind their batch norms, which count all tokens of all images alike."""
        # As maps of one cell: torch's gradients of transposed tokens, seen as maps of one column, are wrong on a CPU.
        return [
            norm(tap.flatten(0, 1)[:, :, None, None])[:, :, 0, 0].view(tap.shape)
            for norm, tap in zip(self.bn, taps, strict=True)
        ]

    def set_step(self, step: int, total: int) -> None:
        """Sets the probabilities of masked attention for the optimiser's next step, see `mask_probabilities`."""
        probs = self.decoder.attn_mask_probs
        probs.copy_(constant(mask_probabilities(step, total, len(probs)), probs))

    def scores(
        self, prediction: generator.QueryPrediction, text_SE: Tensor, synonyms: Sequence[int] | None
    ) -> generator.GeneratorScores:
        texts = torch.cat([text_SE, self.void_embedding.weight.to(text_SE.dtype)])
        scale = self.decoder.logit_scale.exp().clamp(max=LARGEST_SCALE)
        return generator.scores_with_void(prediction, texts, synonyms, scale)


def mask_probabilities(step: int, total: int, blocks: int) -> list[float]:
    """Probability of each block that a query is kept inside its mask in the next step: 1 at first, 0 in the end.

    The first block's declines at once, over `FIRST_BLOCK` steps. Those of the others decline one after another between
    8/30 and 25/30 of the training, each for 5/3 of the time after which the next one follows. With six blocks and the
    lengths of PMT's training these are its own steps.

    Args:
        step: number of steps of the optimiser that were made.
        total: number of steps of the whole training.
        blocks: number of blocks.
    """
    part = 3 * (blocks - 1) + 2
    periods = [(0, min(FIRST_BLOCK, total * 3 // 20))]
    for place in range(blocks - 1):
        begin = 8 * part + 51 * place
        periods.append((total * begin // (30 * part), total * (begin + 85) // (30 * part)))
    return [_declining(step, begin, end) for begin, end in periods]


def _declining(step: int, begin: int, end: int) -> float:
    """1 before `begin`, 0 from `end` on."""
    if step >= end:
        return 0.0
    return 1.0 if step < begin else ((end - step) / (end - begin)) ** POWER
