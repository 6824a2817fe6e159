"""ViTs whose image embedding is an attention pool of their tokens: SigLIP's and PE-Core's.

One learnt query, the latent, attends to all tokens behind the final norm (MAP, "multi-head attention pooling"); what
it gathers is y + MLP(norm(y)). There is no last block to take attention out of: the pool is the layer in which tokens
are mixed into an embedding, so that

    dense feature of a token    the pool's value path: u = O(V t), u + MLP(norm(u)), which is the pool over it alone;
    embedding of a region       the pool with the tokens outside of it excluded.

The blocks, the last one too, attend in full. Blocks are `layers.ResidualBlock`s; the pool has timm's names.

Shapes: B images, L = P + N tokens, P before the patches', Q regions, D width, E embedding, H heads, C channels of one.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.layers import TwoLayers, merge_heads, split_heads
from clipself_seg.clip.linear import Linear, linear
from clipself_seg.clip.runtime import normal_parameter
from clipself_seg.clip.tower import ATTENTION_POOL, DENSE, TransformerTower, rows_of_masks
from clipself_seg.clip.tower_kind import IN_TRUNK, TIMM_BLOCK, TRUNK, Layout, native_name, renamed


class LatentPool(nn.Module):
    """Attention of one learnt query to tokens, and an MLP behind it."""

    def __init__(
        self, *, width: int, heads: int, hidden: int, eps: float, approximate: str = "none"
    ) -> None:
        super().__init__()
        self.heads = heads
        self.latent = normal_parameter(1, 1, width, std=width**-0.5)
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = TwoLayers(width=width, hidden=hidden, approximate=approximate)

    def forward(self, tokens_BLD: Tensor, allowed_BQL: Tensor | None = None) -> Tensor:
        """Attends from the query to the tokens, (B, Q, D).

        Args:
            tokens_BLD: behind the final norm.
            allowed_BQL: boolean, the tokens that each of Q copies of the query may attend to, one at least; None for
                one query and all tokens.
        """
        count = 1 if allowed_BQL is None else allowed_BQL.shape[1]
        k, v = self.kv(tokens_BLD).chunk(2, dim=-1)
        q = split_heads(self.q(self.latent), self.heads)
        attended = F.scaled_dot_product_attention(
            q.expand(tokens_BLD.shape[0], -1, count, -1),
            split_heads(k, self.heads),
            split_heads(v, self.heads),
            attn_mask=None if allowed_BQL is None else allowed_BQL[:, None],
        )
        return self._finish(merge_heads(attended))

    def value_path(self, tokens: Tensor) -> Tensor:
        """Output of the attention pool for each token alone, (..., D) -> (..., D)."""
        width = tokens.shape[-1]
        return self._finish(linear(tokens, self.kv.weight[width:], self.kv.bias[width:]))

    def _finish(self, values: Tensor) -> Tensor:
        pooled = self.proj(values)
        return pooled + self.mlp(self.norm(pooled))


class PooledTower(TransformerTower):
    """Forward passes of a ViT with a `LatentPool`; subclasses embed images and have what is annotated below.

    Attributes:
        region_sees_prefix: True if a region's embedding by masked attention may attend to what stands before the
            patches, the class token, too. PE-Core's image embedding does; a region's leaves it
            out otherwise, for the class token has seen the whole image, and a region of one cell is its dense feature.
    """

    pos_embed: nn.Parameter
    norm: nn.LayerNorm
    attn_pool: LatentPool
    head: nn.Module
    readouts = ATTENTION_POOL
    region_sees_prefix: bool = False
    pooled = True

    def unused_by(self, names: Iterable[str] = (DENSE,)) -> list[nn.Parameter]:
        return []  # all of the last block is read

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)

    def project(self, tokens: Tensor) -> Tensor:
        """Final norm, the pool's value path and the head, (..., D) -> (..., E)."""
        return self.head(self.attn_pool.value_path(self.final_norm(tokens)))

    def forward(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), not normalised, of normalised images (B, 3, H, W)."""
        tokens_BLD, _ = self.final_tokens(images)
        return self.head(self.attn_pool(self.final_norm(tokens_BLD))[:, 0])

    def masked_attention(self, images: Tensor, masks: list[Tensor]) -> Tensor:
        """Region embeddings (sum n, E) by the pool over the tokens of each region, not normalised.

        A region without cells has the zero vector, unless its query attends to the class token.

        Args:
            images: (B, 3, H, W), normalised.
            masks: one boolean mask (n, h, w) of the regions' cells for each image.
        """
        tokens_BLD, grid = self.final_tokens(images)
        allowed_BQL = self.allowed(masks, tokens_BLD, grid, self.region_sees_prefix)
        empty_BQ1 = ~allowed_BQL.any(dim=-1, keepdim=True)
        # A softmax over nothing is not a number: such queries attend to everything, and their result is dropped.
        pooled_BQD = self.attn_pool(self.final_norm(tokens_BLD), allowed_BQL | empty_BQ1)
        return rows_of_masks(self.head(pooled_BQD).masked_fill(empty_BQ1, 0), masks)

    def final_tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, L, D) behind the last block, before the final norm, and the grid."""
        tokens_BLD, extras, grid = self.embed(images)
        for block in self.blocks:
            tokens_BLD = self.run(block, tokens_BLD, *extras)
        return tokens_BLD, grid

    def ends(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        head = [*self.norm.parameters(), *self.attn_pool.parameters(), *self.head.parameters()]
        return self.stem_parameters(), [self.pos_embed], head

    @abc.abstractmethod
    def stem_parameters(self) -> list[nn.Parameter]:
        """Parameters of what stands before positions and blocks."""


def trunk_layouts(marks: Sequence[str], scalars: Mapping[str, float]) -> dict[str, Layout]:
    """Layouts of open_clip's files, with timm's image tower below ``visual.trunk.``, and of timm's.

    Args:
        marks: names that are in each of timm's files and, together, in no other's.
        scalars: logit scale and bias before training, as for `alone`.
    """
    in_trunk = tuple(f"{TRUNK}{mark}" for mark in marks)
    read = functools.partial(read_trunk, scalars=scalars)
    return {
        "open_clip": Layout(write_trunk, in_trunk, read),
        "official": Layout(write_trunk),
        "timm": Layout(None, tuple(marks), functools.partial(read_timm, scalars=scalars)),
    }


def read_trunk(tensors: Mapping[str, Tensor], scalars: Mapping[str, float]) -> dict[str, Tensor]:
    """Native names of open_clip's tensors, whose image tower has timm's names below ``visual.trunk.``.

    Args:
        tensors: of a file.
        scalars: logit scale and bias before training, as for `alone`.
    """
    native = {native_name(name, IN_TRUNK, TIMM_BLOCK): t for name, t in tensors.items()}
    return alone(native, scalars)


def read_timm(tensors: Mapping[str, Tensor], scalars: Mapping[str, float]) -> dict[str, Tensor]:
    """Reads timm's tensors, which are the image tower alone and have no prefix, with `read_trunk`."""
    return read_trunk({f"{TRUNK}{name}": tensor for name, tensor in tensors.items()}, scalars)


def alone(native: dict[str, Tensor], scalars: Mapping[str, float]) -> dict[str, Tensor]:
    """Native tensors, with scalars by their names if they are an image tower alone, which has none of its own."""
    if any(name.startswith("text.") for name in native):
        return native
    return {name: torch.tensor(value) for name, value in scalars.items()} | native


def write_trunk(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names of native tensors, the reverse of `read_trunk`."""
    return {renamed(name, IN_TRUNK, TIMM_BLOCK): tensor for name, tensor in tensors.items()}
