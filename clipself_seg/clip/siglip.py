"""SigLIP and SigLIP 2 (arXiv 2303.15343, 2502.14786): ViTs with an attention pool, trained pair by pair with sigmoids.

The image tower has no class token. The text tower reads 64 tokens in both directions, padding included, and its
embedding is taken at the last position. Which GELU the image tower has depends on the architecture's name in timm.
The towers come first, then the tokenizer, the names in transformers' files, and the kind.

Shapes: B images, N patches, D width, K texts, T tokens of a text, E embedding.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from clipself_seg.clip import tokenizers, tower_kind
from clipself_seg.clip.block_calls import run_block
from clipself_seg.clip.eva import PatchEmbed
from clipself_seg.clip.layers import ResidualBlock, Transformer, initialise_blocks
from clipself_seg.clip.linear import Linear
from clipself_seg.clip.pooled import LatentPool, PooledTower, alone, trunk_layouts
from clipself_seg.clip.positions import patch_grid, resample_positions
from clipself_seg.clip.runtime import QUEUES, normal_parameter
from clipself_seg.clip.text import TextEncoder

EPS = 1e-6  # of all norms
TANH = "tanh"


class Shape(NamedTuple):
    """Sizes of an image tower; `approximate` is GELU's."""

    width: int
    layers: int
    heads: int
    patch_size: int
    approximate: str = "none"
    mlp_ratio: float = 4.0


SO400M = 3.7362  # ratio of its MLPs, in both towers
SHAPES = {
    **{f"vit_base_patch16_siglip_{s}": Shape(768, 12, 12, 16) for s in (224, 256, 384, 512)},
    "vit_base_patch32_siglip_256": Shape(768, 12, 12, 32, TANH),
    **{f"vit_large_patch16_siglip_{side}": Shape(1024, 24, 16, 16) for side in (256, 384)},
    "vit_large_patch16_siglip_512": Shape(1024, 24, 16, 16, TANH),
    **{
        f"vit_so400m_patch14_siglip_{side}": Shape(1152, 27, 16, 14, "none", SO400M)
        for side in (224, 378, 384)
    },
    **{
        f"vit_so400m_patch16_siglip_{side}": Shape(1152, 27, 16, 16, TANH, SO400M)
        for side in (256, 384, 512)
    },
    **{f"vit_giantopt_patch16_siglip_{s}": Shape(1536, 40, 16, 16, TANH) for s in (256, 384)},
}
# Keys of open_clip's configs; one with others, or with other values of those that `FIXED` names, is refused.
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
TEXT_KEYS |= {"hf_tokenizer_name", "tokenizer_kwargs", "act_kwargs", "proj_bias", "proj_type"}
FIXED: dict[str, Any] = {"no_causal_mask": True, "pool_type": "last", "norm_kwargs": {"eps": EPS}}


class SiglipTower(PooledTower):
    """SigLIP's image tower: patches, positions, blocks, norm and pool.

    Inputs of any size that the patch divides, square or not, are accepted: positions are resized, with antialiasing,
    in every forward.
    """

    prefix = 0

    def __init__(self, *, image_size: int, shape: Shape, positions: str = "bicubic") -> None:
        """
        Args:
            image_size: side in pixels of the images for which the position table is.
            shape: all other sizes.
            positions: mode in which the position table is resized: "bicubic", or "bilinear" as naflex does.
        """
        width = shape.width
        super().__init__(
            image_size=image_size, patch_size=shape.patch_size, width=width, embed_dim=width
        )
        self.positions = positions
        cells = (image_size // shape.patch_size) ** 2
        self.patch_embed = PatchEmbed(patch_size=shape.patch_size, width=width)
        self.pos_embed = normal_parameter(1, cells, width, std=0.02)
        self.blocks = nn.ModuleList(
            ResidualBlock(
                width=width,
                heads=shape.heads,
                mlp_ratio=shape.mlp_ratio,
                quick_gelu=False,
                eps=EPS,
                approximate=shape.approximate,
            )
            for _ in range(shape.layers)
        )
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.attn_pool = LatentPool(
            width=width,
            heads=shape.heads,
            hidden=int(width * shape.mlp_ratio),
            eps=EPS,
            approximate=shape.approximate,
        )
        self.head = nn.Identity()
        initialise_blocks(self.blocks)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[int, int]]:
        """Tokens (B, N, D) before the first block, no extra arguments, and the grid (h, w)."""
        grid = patch_grid(images, self.patch_size)
        patches_BND = self.patch_embed(images)
        positions_ND = resample_positions(
            self.pos_embed[0], grid, antialias=True, first=0, mode=self.positions
        )
        return patches_BND + positions_ND.to(patches_BND.dtype), (), grid

    def stem_parameters(self) -> list[nn.Parameter]:
        return list(self.patch_embed.parameters())


class SiglipText(TextEncoder):
    """SigLIP's text tower: attention in both directions, the embedding at the last of all positions.

    Parameter names are open_clip's. Padding is read as any other token, so that texts are not cut at their ends.
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
        mlp_ratio: float = 4.0,
        approximate: str = "none",
        projection: str = "biased",
    ) -> None:
        """
        Args:
            context_length: T, number of tokens of every text.
            vocab_size: number of token ids.
            width: D.
            heads: number of heads.
            layers: number of blocks.
            embed_dim: E.
            mlp_ratio: width of the MLPs in D.
            approximate: of GELU, "none" or "tanh".
            projection: "biased" for a linear layer, "none" for none, where D is E.
        """
        super().__init__()
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = normal_parameter(context_length, width, std=0.01)
        self.transformer = Transformer(
            layers, width=width, heads=heads, mlp_ratio=mlp_ratio, eps=EPS, approximate=approximate
        )
        self.ln_final = nn.LayerNorm(width, eps=EPS)
        self.text_projection = None if projection == "none" else Linear(width, embed_dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        initialise_blocks(self.blocks)

    def forward(self, tokens_KT: Tensor, checkpointing: bool = False) -> Tensor:
        tokens_KT = tokens_KT.to(self.positional_embedding.device, non_blocking=QUEUES)
        x_KTD = self.token_embedding(tokens_KT) + self.positional_embedding[: tokens_KT.shape[1]]
        for block in self.blocks:
            x_KTD = run_block(block, x_KTD, checkpointing=checkpointing)
        x_KD = self.ln_final(x_KTD)[:, -1]
        return x_KD if self.text_projection is None else self.text_projection(x_KD)


END = 1  # id of the token that ends a text
# Ids of SigLIP 2's vocabulary, which pads with 0; SigLIP's own pad with the end token.
GEMMA = 256_000


def siglips_own(pieces: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """SigLIP's tokens: the text is mended, lower-cased and loses its punctuation as in open_clip, and has an end token.

    Files differ in whether they add that token, and Gemma's own adds one before the text, which SigLIP 2 has not.

    Args:
        pieces: tokens of a text by its vocabulary, with the end token or without, and padding.
    """

    clean = tokenizers.open_clip_tokenizer().get_clean_fn("canonicalize")

    def encode(text: str) -> list[int]:
        ids = pieces.encode(clean(text))
        return ids if ids[-1:] == [END] else [*ids, END]

    return tokenizers.Tokenizer(encode, pieces.padding, END)


def siglip_tokenizer(architecture: tower_kind.Architecture) -> tokenizers.Tokenizer:
    """The tokenizer of a model, whose vocabulary is a file of its repository on the hub.

    Raises:
        InputError: as `repository_tokenizer`.
    """
    vocabulary = architecture.text["vocab_size"]
    repository = architecture.text["hf_tokenizer_name"]
    padding = 0 if vocabulary == GEMMA else END
    pieces = tokenizers.repository_tokenizer(
        repository, vocabulary=vocabulary, padding=padding, added=False
    )
    return siglips_own(pieces)


PARTS = (  # beginnings of native names, and transformers'
    ("visual.blocks.", "vision_model.encoder.layers."),
    ("visual.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual.pos_embed", "vision_model.embeddings.position_embedding.weight"),
    ("visual.norm.", "vision_model.post_layernorm."),
    ("visual.attn_pool.latent", "vision_model.head.probe"),
    ("visual.attn_pool.proj.", "vision_model.head.attention.out_proj."),
    ("visual.attn_pool.norm.", "vision_model.head.layernorm."),
    ("visual.attn_pool.mlp.", "vision_model.head.mlp."),
    *tower_kind.TRANSFORMERS_TEXT,
    ("text.text_projection.", "text_model.head."),
)
POOL = "vision_model.head.attention.in_proj_"


def read_siglip(tensors: tower_kind.Tensors, scalars: Mapping[str, float]) -> dict[str, Tensor]:
    """Native names of transformers' tensors; what is none of them stays as it is.

    Args:
        tensors: of a file.
        scalars: logit scale and bias before training, as for `pooled.alone`.
    """
    native = tower_kind.of_transformers(tensors, PARTS)
    for leaf in ("weight", "bias"):
        joined = native.pop(f"{POOL}{leaf}", None)
        if joined is not None and joined.dim():
            width = len(joined) // 3
            native[f"visual.attn_pool.q.{leaf}"] = joined[:width]
            native[f"visual.attn_pool.kv.{leaf}"] = joined[width:]
    return alone(native | _as_images(native), scalars)


def _as_images(native: dict[str, Tensor]) -> dict[str, Tensor]:
    """The patch layer as a convolution and the table with its batch axis, of those that are there."""
    changed = {}
    kernel = native.get("visual.patch_embed.proj.weight")
    if kernel is not None and kernel.dim() == 2:  # of flattened patches
        side = math.isqrt(kernel.shape[1] // 3)
        if 3 * side * side == kernel.shape[1]:
            square = kernel.reshape(-1, side, side, 3).permute(0, 3, 1, 2)
            changed["visual.patch_embed.proj.weight"] = square.contiguous()
    table = native.get("visual.pos_embed")
    if table is not None and table.dim() == 2:
        changed["visual.pos_embed"] = table[None]
    return changed


def _supports(config: tower_kind.Config) -> bool:
    text = config["text_cfg"]
    if config["vision_cfg"].get("timm_model_name") not in SHAPES:
        return False
    projected = text.get("proj_bias") or text.get("proj_type") == "none"
    return bool(
        projected
        and not set(text) - TEXT_KEYS - set(FIXED)
        and all(text.get(key) == value for key, value in FIXED.items())
    )


def _shape(architecture: tower_kind.Architecture) -> Shape:
    """The image tower's sizes; a file's own GELU goes before that of timm's name."""
    shape = SHAPES[architecture.vision["timm_model_name"]]
    return shape._replace(approximate=architecture.vision.get("approximate", shape.approximate))


def _build(architecture: tower_kind.Architecture, quick_gelu: bool) -> SiglipTower:
    vision = architecture.vision
    return SiglipTower(
        image_size=vision["image_size"],
        shape=_shape(architecture),
        positions=vision.get("positions", "bicubic"),
    )


def _build_text(architecture: tower_kind.Architecture, quick_gelu: bool) -> SiglipText:
    text = architecture.text
    sizes = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
    return SiglipText(
        embed_dim=architecture.embed_dim,
        approximate=text.get("act_kwargs", {}).get("approximate", "none"),
        projection="none" if text.get("proj_type") == "none" else "biased",
        **{key: text[key] for key in sizes if key in text},
    )


def _variant(tensors: tower_kind.Tensors) -> str:
    """The one of `VARIANTS` that transformers' tensors are of."""
    kernel = tensors.get("vision_model.embeddings.patch_embedding.weight")
    return "naflex" if kernel is not None and kernel.dim() == 2 else "transformers"


def _in_transformers(
    positions: str, architecture: tower_kind.Architecture
) -> tower_kind.Architecture:
    """An architecture as transformers builds it, with GELU's tanh form in both towers."""
    return dataclasses.replace(
        architecture,
        vision=architecture.vision | {"approximate": TANH, "positions": positions},
        text=architecture.text | {"act_kwargs": {"approximate": TANH}},
    )


VARIANTS = {
    "transformers": functools.partial(_in_transformers, "bicubic"),
    "naflex": functools.partial(_in_transformers, "bilinear"),
}
SCALE = 10.0
SCALARS = {"logit_scale": math.log(SCALE), "logit_bias": -10.0}  # before training
KERNEL = "visual.patch_embed.proj.weight"
SIGLIP = tower_kind.TowerKind(
    name="SigLIP ViT",
    supports=_supports,
    build_image=_build,
    build_text=_build_text,
    key_tensors={"visual.attn_pool.latent": 3, "visual.patch_embed.proj.weight": 4},
    read_sizes=functools.partial(tower_kind.vit_sizes, KERNEL, "blocks", KERNEL),
    layouts={
        **trunk_layouts(["attn_pool.latent"], SCALARS),
        "transformers": tower_kind.Layout(
            marks=("vision_model.head.probe",),
            read=functools.partial(read_siglip, scalars=SCALARS),
            variant=_variant,
        ),
    },
    positions={"visual.pos_embed": tower_kind.PositionTable(first=0)},
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    squash=True,
    tokenizer=siglip_tokenizer,
    templates="openai80",
    scale=SCALE,
    largest_scale=math.inf,
    image_files=True,
    variants=VARIANTS,
)
