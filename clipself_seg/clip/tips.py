"""TIPSv2's image tower (arXiv 2604.12012): a ViT in DINOv2's layout that was trained with texts.

The class token and one register stand before the patches. Both are image embeddings: the class token learnt alt-texts,
the register synthetic captions. There is no projection, so that the embedding has the width of the tower. Pixels are in
[0, 1], without mean and standard deviation. Dense features are the last block for each token alone, residual and MLP
kept, which is ``MODEL.CLIP.DENSE`` ``token``.

Position tables are resized bilinearly with antialiasing, as the published model does (transformers); timm's copy of it
resizes bicubically, so that its features differ at other sizes than 448 pixels.

Shapes: B images, N patches, L = 2 + N tokens (class token, register, patches), D width, h x w token grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.checkpoints.dense_feature import KINDS as DENSE_KINDS
from clipself_seg.clip.initialisation import normal_parameter
from clipself_seg.clip.kind import (
    Architecture,
    Config,
    Layout,
    PositionTable,
    Sizes,
    Tensors,
    TowerKind,
    count_blocks,
)
from clipself_seg.clip.layers import ResidualBlock, Transformer
from clipself_seg.clip.linear import Linear
from clipself_seg.clip.openai_vit import ResidualTower
from clipself_seg.clip.positions import patch_grid, resample_positions
from clipself_seg.clip.tips_names import (
    TEMPERATURE,
    read_official,
    read_timm,
    read_transformers,
    write_official,
    write_timm,
    write_transformers,
)
from clipself_seg.clip.tips_text import TipsTextTower, mlp_ratio
from clipself_seg.clip.tokenizer_files import repository_tokenizer
from clipself_seg.clip.tokenizers import Tokenizer
from clipself_seg.errors import InputError, nearest

NORM_EPS = 1e-6
POSITIONS = PositionTable(antialias=True, mode="bilinear")
# Keys of its models' configs.
VISION_KEYS = {"image_size", "patch_size", "width", "layers", "heads", "hidden", "gated"}
VISION_KEYS |= {"register_tokens"}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "hidden"}
TEXT_KEYS |= {"hf_tokenizer_name"}
CLASS = "class"
SECOND = "second_class"
EMBEDDINGS = (CLASS, SECOND)  # in the order of their tokens


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
            gated: whether the MLPs are gated ones.
        """
        super().__init__(image_size=image_size, patch_size=patch_size, width=width, embed_dim=width)
        grid = image_size // patch_size
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.class_embedding = normal_parameter(width, std=0.02)
        self.register_embedding = normal_parameter(width, std=0.02)
        self.positional_embedding = normal_parameter(1 + grid**2, width, std=0.02)
        sizes: dict[str, Any] = {
            "width": width,
            "heads": heads,
            "mlp_ratio": mlp_ratio(width, hidden),
        }
        sizes |= {"quick_gelu": False, "layer_scale": 1.0, "eps": NORM_EPS}
        self.transformer = Transformer([ResidualBlock(**sizes) for _ in range(layers)])
        self.ln_post = nn.LayerNorm(width, eps=NORM_EPS)
        self.transformer.initialise()
        if gated:
            for block in self.blocks:
                block.mlp = PackedSwiGLU(width=width, hidden=hidden)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[int, int]]:
        """Tokens (B, L, D) before the first block, no extra arguments, and the grid (h, w)."""
        grid = patch_grid(images, self.patch_size)
        patches_BND = self.conv1(images).flatten(2).transpose(1, 2)
        positions_LD = resample_positions(
            self.positional_embedding, grid, antialias=POSITIONS.antialias, mode=POSITIONS.mode
        )
        first_2D = torch.stack([self.class_embedding + positions_LD[0], self.register_embedding])
        patches_BND = patches_BND + positions_LD[1:].to(patches_BND.dtype)
        first_B2D = first_2D.to(patches_BND.dtype).expand(images.shape[0], -1, -1)
        return torch.cat([first_B2D, patches_BND], dim=1), (), grid

    def project(self, tokens: Tensor) -> Tensor:
        """Final norm, (..., D) -> (..., D)."""
        return self.ln_post(tokens)

    def image_embeddings(
        self, images: Tensor, names: Iterable[str] = EMBEDDINGS
    ) -> dict[str, Tensor]:
        """Image embeddings (B, D) by name, not normalised, from one pass.

        Args:
            images: (B, 3, H, W), pixels in [0, 1].
            names: ``class``, which `forward` gives, and ``second_class``.

        Raises:
            InputError: there is no embedding of that name.
        """
        wanted = list(names)
        for name in wanted:
            if name not in EMBEDDINGS:
                raise InputError(
                    f'no image embedding "{name}" in this tower; {nearest(name, EMBEDDINGS)}'
                )
        tokens_BLD, extras, _ = self.embed(images)
        for block in self.blocks[:-1]:
            tokens_BLD = self.run(block, tokens_BLD, *extras)
        last: Any = self.blocks[-1]
        first_B2D = last.forward_mask_tokens(tokens_BLD[:, : self.prefix], tokens_BLD, None)
        rows_B2D = self.project(first_B2D)
        return {name: rows_B2D[:, EMBEDDINGS.index(name)] for name in wanted}

    def ends(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        """As `TransformerTower.ends`."""
        stem = [*self.conv1.parameters(), self.class_embedding, self.register_embedding]
        return stem, [self.positional_embedding], list(self.ln_post.parameters())


def _supports(config: Config) -> bool:
    return set(config["vision_cfg"]) == VISION_KEYS and set(config["text_cfg"]) == TEXT_KEYS


def _sizes(architecture: Architecture) -> Sizes:
    vision = architecture.vision
    return Sizes(vision["width"], vision["layers"], vision["patch_size"], architecture.embed_dim)


def _build_image(architecture: Architecture, quick_gelu: bool) -> TipsTransformer:
    vision = dict(architecture.vision)
    del vision["register_tokens"]  # 1, which the kind is known by
    return TipsTransformer(**vision)


def _build_text(architecture: Architecture, quick_gelu: bool) -> TipsTextTower:
    text = dict(architecture.text)
    del text["hf_tokenizer_name"]
    return TipsTextTower(**text)


def _tokenizer(architecture: Architecture) -> Tokenizer:
    text = architecture.text
    return repository_tokenizer(text["hf_tokenizer_name"], vocabulary=text["vocab_size"])


def _read_sizes(tensors: Tensors) -> Sizes:
    kernel = tensors["visual.conv1.weight"].shape
    layers = count_blocks(tensors, "transformer.resblocks")
    return Sizes(kernel[0], layers, kernel[-1], kernel[0])


TIPS = TowerKind(
    name="TIPSv2",
    supports=_supports,
    sizes=_sizes,
    build_image=_build_image,
    key_tensors={"visual.register_embedding": 1, "visual.conv1.weight": 4},
    read_sizes=_read_sizes,
    build_text=_build_text,
    layouts={
        "official": Layout(
            write=write_official,
            marks=("vision_encoder.register_tokens",),
            read=read_official,
        ),
        "transformers": Layout(
            write=write_transformers,
            marks=("vision_model.embeddings.register_tokens",),
            read=read_transformers,
        ),
        "timm": Layout(
            write=write_timm, marks=("reg_token", "pos_embed", "blocks.0.ls1.gamma"), read=read_timm
        ),
    },
    positions={"visual.positional_embedding": POSITIONS},
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    tokenizer=_tokenizer,
    templates="tcl9",
    scale=1 / TEMPERATURE,
    largest_scale=math.inf,
    image_files=True,
    dense_kinds=DENSE_KINDS,
    attentions=True,
)
