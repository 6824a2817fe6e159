"""CLIP's text tower, and batched encoding of many prompts.

Shapes: K texts, T tokens of a text, D width of the tower, E width of the embedding.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn
from tqdm import tqdm

from clipself_seg.checkpoints.read import nearly_equal
from clipself_seg.clip.block_calls import run_block
from clipself_seg.clip.layers import Transformer, initialise_blocks
from clipself_seg.clip.runtime import QUEUES, chunk_size, normal_parameter
from clipself_seg.errors import InputError

BATCH = 256  # prompts encoded together where no gradient is needed
TRAINED_BATCH = 64  # and on a CPU where one is: fewer tokens behind the ends of texts, and rows enough for its cores
MANY = 4096  # prompts that deserve a progress bar


class TextEncoder(nn.Module, abc.ABC):
    """The base class of text towers.

    Attributes:
        context_length: number of tokens of a text, those that mark its start and end included.
        transformer: the stack of blocks.
    """

    context_length: int
    transformer: Transformer

    @abc.abstractmethod
    def forward(self, tokens_KT: Tensor, checkpointing: bool = False) -> Tensor:
        """Text embeddings (K, E), not normalised, of token ids (K, T) on any device.

        Args:
            tokens_KT: as the kind's tokenizer makes them.
            checkpointing: blocks keep least for the backward pass.
        """

    def whole(self, tokens_KT: Tensor) -> Tensor:
        """Runs `forward` on the tokens' device without a decision by their values, for a graph that is exported."""
        embeddings: Tensor = self(tokens_KT)
        return embeddings

    def lengths(self, tokens_KT: Tensor) -> Tensor:
        """A number (K,) for each text that grows with its cost, by which texts are batched; here all are alike."""
        return torch.zeros(len(tokens_KT), dtype=torch.long, device=tokens_KT.device)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, in order."""
        return self.transformer.resblocks


class TextTower(TextEncoder):
    """Causal transformer whose embedding is taken at the end-of-text token.

    Parameter names are those of OpenAI's state dict.
    """

    def __init__(
        self,
        *,
        context_length: int,
        vocab_size: int,
        width: int,
        heads: int,
        layers: int,
        embed_dim: int,
        quick_gelu: bool,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = normal_parameter(context_length, width, std=0.01)
        self.transformer = Transformer(
            layers, width=width, heads=heads, mlp_ratio=mlp_ratio, quick_gelu=quick_gelu
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = normal_parameter(width, embed_dim, std=width**-0.5)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        initialise_blocks(self.blocks)

    def forward(self, tokens_KT: Tensor, checkpointing: bool = False) -> Tensor:
        """Text embeddings (K, E), not normalised, of token ids (K, T) on any device.

        Attention is causal and only the end-of-text token (the largest id) is used, so tokens after
        the last end-of-text token of the batch have no effect and are cut off. With `checkpointing` blocks
        keep least for the backward pass. Where texts end is read from the tokens as they are given:
        on the CPU, a GPU is not waited for.
        """
        end_K = tokens_KT.argmax(dim=-1)
        length = int(end_K.max()) + 1 if len(tokens_KT) else 1
        device = self.text_projection.device
        cut_KT = tokens_KT[:, :length].to(device, non_blocking=QUEUES)
        return self.encode(cut_KT, end_K.to(device, non_blocking=QUEUES), checkpointing)

    def whole(self, tokens_KT: Tensor) -> Tensor:
        return self.encode(tokens_KT, tokens_KT.argmax(dim=-1))

    def lengths(self, tokens_KT: Tensor) -> Tensor:
        return tokens_KT.argmax(dim=-1)  # where the end-of-text token is

    def encode(self, tokens_KT: Tensor, end_K: Tensor, checkpointing: bool = False) -> Tensor:
        """Text embeddings (K, E), not normalised.

        Args:
            tokens_KT: token ids, cut off or not; nothing here depends on their values but by arithmetic.
            end_K: index of each text's end-of-text token.
            checkpointing: keep the blocks' inputs alone for the backward pass.
        """
        x_KTD = self.token_embedding(tokens_KT) + self.positional_embedding[: tokens_KT.shape[1]]
        for block in self.blocks:
            x_KTD = run_block(block, x_KTD, True, checkpointing=checkpointing)  # causal
        x_KD = x_KTD[torch.arange(x_KTD.shape[0], device=x_KTD.device), end_K]
        return self.ln_final(x_KD) @ self.text_projection


class NoTextTower(TextEncoder):
    """In place of the text tower where a file has none: raises an error when it is given texts."""

    def __init__(self, *, context_length: int, source: str) -> None:
        """
        Args:
            context_length: number of tokens of a text, as the model's own has it.
            source: name of the file.
        """
        super().__init__()
        self.context_length = context_length
        self.source = source

    def forward(self, tokens_KT: Tensor, checkpointing: bool = False) -> Tensor:
        raise InputError(
            f"{self.source} has an image tower alone, and this needs texts: give a file with both towers of this model"
        )

    @property
    def blocks(self) -> nn.ModuleList:
        return nn.ModuleList()


def texts_at_once(device: torch.device, training: bool) -> int:
    """Number of prompts of like length that are encoded together, with gradients if `training`."""
    return chunk_size(device, TRAINED_BATCH, 1) if training else BATCH


def encode_prompts(
    tower: TextEncoder, tokens_KT: Tensor, *, checkpointing: bool = False, stable: bool = True
) -> Tensor:
    """Text embeddings (K, E), not normalised, of token ids (K, T), on the tower's device.

    Texts are encoded in batches of like length, since CLIP's tower cuts a batch at its longest text; with gradients
    enabled a GPU encodes all at once.

    Args:
        tower: encodes.
        tokens_KT: on any device, the CPU at best (`TextTower.forward`).
        checkpointing: with gradients, recompute the tower's blocks in the backward pass.
        stable: texts of one length keep their order in the batches, on which the last digits depend.
    """
    training = torch.is_grad_enabled()
    like = next(tower.parameters(), tokens_KT)  # a tower that refuses texts has none
    size = texts_at_once(like.device, training)
    if training and len(tokens_KT) <= size:
        return tower(tokens_KT, checkpointing)
    order_K = tower.lengths(tokens_KT).argsort(stable=stable)
    bar = tqdm(order_K.split(size), "texts", leave=False, disable=len(tokens_KT) < MANY)
    encoded_KE = torch.cat([tower(tokens_KT[batch], checkpointing) for batch in bar])
    return encoded_KE[order_K.argsort().to(encoded_KE.device, non_blocking=QUEUES)]


def require_text_tower(tower: nn.Module, other: nn.Module, source: str) -> None:
    """Refuses a text tower that is not ``MODEL.CLIP.WEIGHTS``'s, which distillation leaves alone.

    Args:
        tower: of ``MODEL.CLIP.WEIGHTS``.
        other: of the same architecture; either may be a `NoTextTower`, which is the other's too.
        source: key and value that name the weights of `other`, for the message.

    Raises:
        InputError: their weights differ by more than rounding.
    """
    if isinstance(tower, NoTextTower) or isinstance(other, NoTextTower):
        return
    theirs = other.state_dict()
    for name, tensor in tower.state_dict().items():
        if not nearly_equal(tensor, theirs[name]):
            raise InputError(
                f"{source}: its text tower is not that of MODEL.CLIP.WEIGHTS; take a CLIP that was "
                "distilled from these weights"
            )
