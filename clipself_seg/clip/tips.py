"""TIPSv2 (arXiv 2604.12012): its image tower, its text tower, the names in its files, and the kind.

The image tower is a ViT in DINOv2's layout that was trained with texts.
The class token and one register stand before the patches. Both are image embeddings: the class token learnt alt-texts,
the register synthetic captions. There is no projection, so that the embedding has the width of the tower. Pixels are in
[0, 1], without mean and standard deviation. Dense features are the last block for each token alone, residual and MLP
kept, which is ``MODEL.CLIP.DENSE`` ``token``.

Position tables are resized bilinearly with antialiasing, as the published model does (transformers); timm's copy of it
resizes bicubically, so that its features differ at other sizes than 448 pixels; its files are not read.

Shapes: B images, N patches, L = 2 + N tokens (class token, register, patches), D width, h x w token grid, K texts, T
    tokens of a text.
"""

from __future__ import annotations

import functools
import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip import tower_kind
from clipself_seg.clip.block_calls import run_block
from clipself_seg.clip.layers import Transformer, initialise_blocks
from clipself_seg.clip.linear import Linear
from clipself_seg.clip.openai import ResidualTower
from clipself_seg.clip.positions import patch_grid, resample_positions
from clipself_seg.clip.precision import in_own_precision
from clipself_seg.clip.runtime import QUEUES, normal_parameter
from clipself_seg.clip.text import TextEncoder
from clipself_seg.clip.tokenizers import Tokenizer, repository_tokenizer

PADDING = 0  # id of what fills up a text
FEWEST = 1e-8  # added to numbers of tokens, so that a text without any has the embedding 0
BASE = 10000.0  # of the frequencies of positions
NORM_EPS = 1e-6
POSITIONS = tower_kind.PositionTable(antialias=True, mode="bilinear")
# Keys of its models' configs.
VISION_KEYS = {"image_size", "patch_size", "width", "layers", "heads", "hidden", "gated"}
VISION_KEYS |= {"register_tokens"}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "hidden"}
TEXT_KEYS |= {"hf_tokenizer_name"}


class PackedSwiGLU(nn.Module):
    """The gated MLP ``c_proj(silu(gate) * up)`` of the giant model, gate and up stacked in ``c_fc``."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = Linear(width, 2 * hidden)
        self.c_proj = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms (..., D) into (..., D)."""
        gate, up = self.c_fc(x).chunk(2, dim=-1)
        return self.c_proj(F.silu(gate) * up)


class TipsTransformer(ResidualTower):
    """TIPSv2's image tower: patches, class token and register, positions of all but the register, blocks, norm.

    Inputs of any size that the patch divides, square or not, are accepted: positions are resized to the grid in every
    forward. The mask tokens of masked attention are copies of the class token, and see the register too.
    """

    prefix = 2

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        gated: bool = False,
    ) -> None:
        """
        Args:
            image_size: side in pixels of the images for which the position table is made.
            patch_size: side of a patch in pixels.
            width: D.
            layers: number of blocks.
            heads: of each block's attention.
            hidden: width of the MLPs between their layers.
            gated: True if the MLPs are gated.
        """
        super().__init__(image_size=image_size, patch_size=patch_size, width=width, embed_dim=width)
        grid = image_size // patch_size
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.class_embedding = normal_parameter(width, std=0.02)
        self.register_embedding = normal_parameter(width, std=0.02)
        self.positional_embedding = normal_parameter(1 + grid**2, width, std=0.02)
        self.transformer = Transformer(
            layers,
            width=width,
            heads=heads,
            mlp_ratio=mlp_ratio(width, hidden),
            layer_scale=1.0,
            eps=NORM_EPS,
        )
        self.ln_post = nn.LayerNorm(width, eps=NORM_EPS)
        initialise_blocks(self.blocks)
        if gated:
            for block in self.blocks:
                block.mlp = PackedSwiGLU(width=width, hidden=hidden)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[int, int]]:
        """Tokens (B, L, D) before the first block, no extra arguments, and the grid (h, w)."""
        grid = patch_grid(images, self.patch_size)
        patches_BND = in_own_precision(self.conv1, images).flatten(2).transpose(1, 2)
        positions_LD = resample_positions(
            self.positional_embedding, grid, antialias=POSITIONS.antialias, mode=POSITIONS.mode
        )
        first_2D = torch.stack([self.class_embedding + positions_LD[0], self.register_embedding])
        patches_BND = patches_BND + positions_LD[1:].to(patches_BND.dtype)
        first_B2D = first_2D.to(patches_BND.dtype).expand(images.shape[0], -1, -1)
        return torch.cat([first_B2D, patches_BND], dim=1), (), grid

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.ln_post(tokens)

    def project(self, tokens: Tensor) -> Tensor:
        """Final norm, (..., D) -> (..., D)."""
        return self.final_norm(tokens)

    def ends(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        stem = [*self.conv1.parameters(), self.class_embedding, self.register_embedding]
        return stem, [self.positional_embedding], list(self.ln_post.parameters())


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
        self.transformer = Transformer(layers, width=width, heads=heads, mlp_ratio=ratio)
        for block in self.blocks:
            block.get_submodule("mlp").gelu = nn.ReLU()
        self.ln_final = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        initialise_blocks(self.blocks)

    def forward(self, tokens_KT: Tensor, checkpointing: bool = False) -> Tensor:
        """Text embeddings (K, D), not normalised, of token ids (K, T) on any device.

        Padding has no effect: what is padding in all texts is cut off. With `checkpointing` blocks keep least
        for the backward pass. Where texts end is read from the tokens as they are given: on the CPU, a GPU is
        not waited for.
        """
        counts_K = self.lengths(tokens_KT)
        length = max(1, int(counts_K.max())) if len(tokens_KT) else 1
        device = self.ln_final.weight.device
        return self.encode(tokens_KT[:, :length].to(device, non_blocking=QUEUES), checkpointing)

    def whole(self, tokens_KT: Tensor) -> Tensor:
        return self.encode(tokens_KT)

    def lengths(self, tokens_KT: Tensor) -> Tensor:
        places_T = torch.arange(1, tokens_KT.shape[1] + 1, device=tokens_KT.device)
        return (places_T * (tokens_KT != PADDING)).amax(dim=1)

    def encode(self, tokens_KT: Tensor, checkpointing: bool = False) -> Tensor:
        """Text embeddings (K, D), not normalised.

        Args:
            tokens_KT: token ids on the tower's device, cut off or not.
            checkpointing: blocks keep least for the backward pass.
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


# By width, what the published files were trained to, which have none: config.json of google/tipsv2-b14, -l14,
# -so400m14 and -g14 on the hub (read 2026-12-01).
TEMPERATURES = {
    768: 0.005065968260169029,
    1024: 0.004785141441971064,
    1152: 0.004638021811842918,
    1536: 0.003622700460255146,
}
TEMPERATURE = TEMPERATURES[768]  # of other widths
OFFICIAL = "vision_encoder."
MASK_TOKEN = "vision_encoder.mask_token"
CLASS_TOKEN = "visual.class_embedding"
REGISTER = "visual.register_embedding"
POSITION_TABLE_NAME = "visual.positional_embedding"
# Native name and the published one; those in blocks are timm's.
_OFFICIAL = (
    ("visual.transformer.resblocks.", f"{OFFICIAL}blocks."),
    ("visual.conv1.", f"{OFFICIAL}patch_embed.proj."),
    ("visual.ln_post.", f"{OFFICIAL}norm."),
    (CLASS_TOKEN, f"{OFFICIAL}cls_token"),
    (REGISTER, f"{OFFICIAL}register_tokens"),
    (POSITION_TABLE_NAME, f"{OFFICIAL}pos_embed"),
    ("text.", "text_encoder."),
)
_OFFICIAL_GATED = ((".mlp.c_fc.", ".mlp.w12."), (".mlp.c_proj.", ".mlp.w3."))
_VECTORS = (CLASS_TOKEN, REGISTER)


def read_official(tensors: tower_kind.Tensors) -> dict[str, Tensor]:
    """Native tensors of a published file; what is none stays as it is."""
    block = tower_kind.TIMM_BLOCK + _OFFICIAL_GATED
    named = _with_scale(tensors).items()
    return _flat({tower_kind.native_name(name, _OFFICIAL, block): tensor for name, tensor in named})


def write_official(tensors: tower_kind.Tensors) -> dict[str, Tensor]:
    """Native tensors in the layout of published files."""
    written: dict[str, Tensor] = {}
    for native, tensor in tensors.items():
        if native == "logit_scale":
            written["temperature"] = torch.exp(-tensor.double()).to(tensor.dtype)
            continue
        gated = _is_gated(native.replace(".c_proj.", ".c_fc."), tensors)
        block = _OFFICIAL_GATED + tower_kind.TIMM_BLOCK if gated else tower_kind.TIMM_BLOCK
        written[tower_kind.renamed(native, _OFFICIAL, block)] = _with_axes(native, tensor)
    if CLASS_TOKEN in tensors:
        written[MASK_TOKEN] = torch.zeros_like(tensors[CLASS_TOKEN])[None]
    return written


def _with_scale(tensors: tower_kind.Tensors) -> dict[str, Tensor]:
    """Tensors without a token for masked patches, and with the logarithm of a scale in the temperature's place.

    A file without temperature has that of the published model of its width, which its last norm says.
    """
    kept = {n: t for n, t in tensors.items() if n != MASK_TOKEN}
    norm = kept.get(f"{OFFICIAL}norm.weight")
    published = TEMPERATURES.get(0 if norm is None else norm.numel(), TEMPERATURE)
    temperature = kept.pop("temperature", torch.tensor(published))
    return {"logit_scale": -temperature.double().log().float()} | kept


def _is_gated(name: str, tensors: tower_kind.Tensors) -> bool:
    """True if a tensor is of the first layer of a gated MLP, by its number of rows."""
    match = re.fullmatch(r"(visual\..*\.mlp\.)c_fc\.(weight|bias)", name)
    if match is None:
        return False
    second = tensors[f"{match.group(1)}c_proj.weight"]
    return tensors[name].shape[0] == 2 * second.shape[1]


def _flat(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tokens as (D), positions as (L, D), without the axes of 1 that files have before them."""
    for name in (*_VECTORS, POSITION_TABLE_NAME):
        rank = 2 if name == POSITION_TABLE_NAME else 1
        while name in tensors and tensors[name].dim() > rank and tensors[name].shape[0] == 1:
            tensors[name] = tensors[name][0]
    return tensors


def _with_axes(name: str, tensor: Tensor) -> Tensor:
    """The reverse of `_flat`."""
    if name in _VECTORS:
        return tensor[None, None]
    return tensor[None] if name == POSITION_TABLE_NAME else tensor


def _supports(config: tower_kind.Config) -> bool:
    return set(config["vision_cfg"]) == VISION_KEYS and set(config["text_cfg"]) == TEXT_KEYS


def _build_image(architecture: tower_kind.Architecture, quick_gelu: bool) -> TipsTransformer:
    vision = dict(architecture.vision)
    del vision["register_tokens"]  # 1, which the kind is known by
    return TipsTransformer(**vision)


def _build_text(architecture: tower_kind.Architecture, quick_gelu: bool) -> TipsTextTower:
    text = dict(architecture.text)
    del text["hf_tokenizer_name"]
    return TipsTextTower(**text)


def _tokenizer(architecture: tower_kind.Architecture) -> Tokenizer:
    text = architecture.text
    return repository_tokenizer(text["hf_tokenizer_name"], vocabulary=text["vocab_size"])


TIPS = tower_kind.TowerKind(
    name="TIPSv2",
    supports=_supports,
    build_image=_build_image,
    key_tensors={"visual.register_embedding": 1, "visual.conv1.weight": 4},
    read_sizes=functools.partial(
        tower_kind.vit_sizes, "visual.conv1.weight", "transformer.resblocks", "visual.conv1.weight"
    ),
    build_text=_build_text,
    layouts={
        "official": tower_kind.Layout(
            write=write_official, marks=("vision_encoder.register_tokens",), read=read_official
        ),
    },
    positions={"visual.positional_embedding": POSITIONS},
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    tokenizer=_tokenizer,
    templates="tcl9",
    scale=1 / TEMPERATURE,
    largest_scale=math.inf,
)
