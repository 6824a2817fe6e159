"""TIPSv2's text tower (arXiv 2604.12012): sine positions, ReLU, the mean of all tokens as embedding.

Shapes: K texts, T tokens of a text, D width, which is that of the embedding too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from clipself_seg.clip.layers import ResidualBlock, Transformer
from clipself_seg.clip.recomputation import run_block
from clipself_seg.clip.text import TextEncoder

PADDING = 0  # id of what fills up a text
FEWEST = 1e-8  # added to numbers of tokens, so that a text without any has the embedding 0
BASE = 10000.0  # of the frequencies of positions


class TipsTextTower(TextEncoder):
    """Transformer whose tokens attend to all that are no padding; the embedding is their mean behind the final norm."""

    def __init__(
        self,
        *,
        context_length: int,
        vocab_size: int,
        width: int,
        heads: int,
        layers: int,
        hidden: int,
    ) -> None:
        """
        Args:
            context_length: most tokens of a text.
            vocab_size: number of token ids.
            width: D.
            heads: of each block's attention.
            layers: number of blocks.
            hidden: width of the MLPs between their layers.
        """
        super().__init__()
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, width)
        ratio = mlp_ratio(width, hidden)
        blocks = [
            ResidualBlock(width=width, heads=heads, mlp_ratio=ratio, quick_gelu=False)
            for _ in range(layers)
        ]
        for block in blocks:
            mlp: Any = block.mlp
            mlp.gelu = nn.ReLU()
        self.transformer = Transformer(blocks)
        self.ln_final = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.transformer.initialise()

    def forward(self, tokens_KT: Tensor, checkpointing: bool = False) -> Tensor:
        """Text embeddings (K, D), not normalised, of token ids (K, T) on any device.

        Padding has no effect: what is padding in all texts is cut off. With `checkpointing` blocks keep their input
        alone for the backward pass. Where texts end is read from the tokens as they are given: on the CPU, a GPU is
        not waited for.
        """
        counts_K = self.lengths(tokens_KT)
        length = max(1, int(counts_K.max())) if len(tokens_KT) else 1
        device = self.ln_final.weight.device
        return self.encode(tokens_KT[:, :length].to(device, non_blocking=True), checkpointing)

    def whole(self, tokens_KT: Tensor) -> Tensor:
        """As `forward`, with all padding."""
        return self.encode(tokens_KT)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, in order."""
        return self.transformer.resblocks

    def lengths(self, tokens_KT: Tensor) -> Tensor:
        """Number (K,) of tokens up to the last that is no padding."""
        places_T = torch.arange(1, tokens_KT.shape[1] + 1, device=tokens_KT.device)
        return (places_T * (tokens_KT != PADDING)).amax(dim=1)

    def encode(self, tokens_KT: Tensor, checkpointing: bool = False) -> Tensor:
        """Text embeddings (K, D), not normalised.

        Args:
            tokens_KT: token ids on the tower's device, cut off or not.
            checkpointing: keep the blocks' inputs alone for the backward pass.
        """
        width = self.token_embedding.embedding_dim
        valid_KT = tokens_KT != PADDING
        # Softmax needs a key: a text of padding alone attends to its first token, whose weight in the mean is 0.
        first_T = torch.arange(tokens_KT.shape[1], device=tokens_KT.device) == 0
        keys_KT = valid_KT | first_T
        x_KTD = math.sqrt(width) * self.token_embedding(tokens_KT)
        x_KTD = x_KTD + sine_positions(tokens_KT.shape[1], width, x_KTD.device).to(x_KTD.dtype)
        for block in self.blocks:
            x_KTD = run_block(block, x_KTD, False, keys_KT, checkpointing=checkpointing)
        valid_KT1 = valid_KT[..., None].to(x_KTD.dtype)
        total_KD = (valid_KT1 * self.ln_final(x_KTD)).sum(dim=1)
        return total_KD / (valid_KT1.sum(dim=1) + FEWEST)


def mlp_ratio(width: int, hidden: int) -> float:
    """A ratio by which a block, which rounds down, has an MLP of exactly `hidden` channels."""
    return (hidden + 0.5) / width


def sine_positions(length: int, width: int, device: torch.device) -> Tensor:
    """Positions (length, width) of tokens, float32: sines of all frequencies, then their cosines.

    Frequencies fall from 1 to 1 / 10000 in equal ratios.

    Args:
        length: number of positions, from 0.
        width: even.
        device: of the result.
    """
    half = width // 2
    steps = torch.arange(half, device=device).float()
    frequencies = torch.exp(steps * (-math.log(BASE) / (half - 1)))
    angles = torch.arange(length, device=device).float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
