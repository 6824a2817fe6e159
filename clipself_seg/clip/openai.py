"""OpenAI's CLIP and open_clip's models of the same layout: the ViT, and the kind of the ResNets.

The ResNets' tower is in `resnet.py`, which imports open_clip: that takes seconds.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from clipself_seg.clip import tower_kind
from clipself_seg.clip.layers import Transformer, initialise_blocks
from clipself_seg.clip.positions import patch_grid, resample_positions
from clipself_seg.clip.precision import in_own_precision
from clipself_seg.clip.runtime import normal_parameter
from clipself_seg.clip.tower import ImageTower, TransformerTower

# Keys of open_clip's configs that this tower and the ResNets implement; a config with any other key is refused.
VISION_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
VISION_KEYS |= {"ls_init_value"}


class ResidualTower(TransformerTower):
    """A ViT whose blocks are those of a `Transformer`."""

    transformer: Transformer

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The residual blocks, in order."""
        return self.transformer.resblocks


class VisionTransformer(ResidualTower):
    """OpenAI's image tower: patches, class token, positions, pre-norm, blocks, post-norm, projection.

    Parameter names are those of OpenAI's state dict without ``visual.``. Inputs of any size that the
    patch divides, square or not, are accepted: positions are resized to the grid in every forward.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        embed_dim: int,
        quick_gelu: bool,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size, patch_size=patch_size, width=width, embed_dim=embed_dim
        )
        grid = image_size // patch_size
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = normal_parameter(width, std=width**-0.5)
        self.positional_embedding = normal_parameter(1 + grid**2, width, std=width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            layers,
            width=width,
            heads=heads,
            mlp_ratio=mlp_ratio,
            quick_gelu=quick_gelu,
            layer_scale=layer_scale,
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = normal_parameter(width, embed_dim, std=width**-0.5)
        initialise_blocks(self.blocks)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[int, int]]:
        """Tokens (B, L, D) before the first block, no extra arguments, and the grid (h, w)."""
        grid = patch_grid(images, self.patch_size)
        patches_BND = in_own_precision(self.conv1, images).flatten(2).transpose(1, 2)
        first_B1D = self.class_embedding.to(patches_BND.dtype).expand(images.shape[0], 1, -1)
        positions_LD = resample_positions(self.positional_embedding, grid)
        tokens_BLD = torch.cat([first_B1D, patches_BND], dim=1) + positions_LD.to(patches_BND.dtype)
        return self.ln_pre(tokens_BLD), (), grid

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.ln_post(tokens)

    def project(self, tokens: Tensor) -> Tensor:
        """Post-norm and projection, (..., D) -> (..., E)."""
        return self.ln_post(tokens) @ self.proj

    def ends(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        stem = [*self.conv1.parameters(), self.class_embedding, *self.ln_pre.parameters()]
        return stem, [self.positional_embedding], [*self.ln_post.parameters(), self.proj]


def _supports(stages: bool, config: tower_kind.Config) -> bool:
    vision = config["vision_cfg"]
    staged = isinstance(vision.get("layers"), list)
    return staged == stages and tower_kind.has_clip_text(config) and not set(vision) - VISION_KEYS


def _build(architecture: tower_kind.Architecture, quick_gelu: bool) -> VisionTransformer:
    vision = architecture.vision
    width = vision.get("width", 768)
    return VisionTransformer(
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 16),
        width=width,
        layers=vision.get("layers", 12),
        heads=width // vision.get("head_width", 64),
        mlp_ratio=vision.get("mlp_ratio", 4.0),
        layer_scale=vision.get("ls_init_value"),
        embed_dim=architecture.embed_dim,
        quick_gelu=quick_gelu,
    )


PARTS = (  # beginnings of native names, and transformers'
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),  # their spelling
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
    *tower_kind.TRANSFORMERS_TEXT,
    ("text.text_projection", "text_projection.weight"),
)


def read_transformers(tensors: tower_kind.Tensors) -> dict[str, Tensor]:
    """Native tensors of a CLIPModel of transformers, whose projections are transposed; what is none stays as it is."""
    native = tower_kind.of_transformers(tensors, PARTS)
    for name in ("visual.proj", "text.text_projection"):
        if name in native and native[name].dim() == 2:
            native[name] = native[name].T.contiguous()
    return native


TRANSFORMERS_MARK = "vision_model.pre_layrnorm.weight"
OPENAI_VIT = tower_kind.TowerKind(
    name="OpenAI ViT",
    supports=functools.partial(_supports, False),
    build_image=_build,
    key_tensors={"visual.class_embedding": 1, "visual.proj": 2, "visual.conv1.weight": 4},
    read_sizes=functools.partial(
        tower_kind.vit_sizes, "visual.conv1.weight", "transformer.resblocks", "visual.proj", axis=1
    ),
    layouts=tower_kind.TEXT_AT_TOP
    | {"transformers": tower_kind.Layout(marks=(TRANSFORMERS_MARK,), read=read_transformers)},
    positions={"visual.positional_embedding": tower_kind.PositionTable()},
    quick_gelu=True,
)


STRIDE = 32


def _build_resnet(architecture: tower_kind.Architecture, quick_gelu: bool) -> ImageTower:
    from clipself_seg.clip.resnet import ResNetTower  # imports open_clip

    vision = architecture.vision
    return ResNetTower(
        image_size=vision.get("image_size", 224),
        width=vision["width"],
        layers=tuple(vision["layers"]),
        embed_dim=architecture.embed_dim,
    )


def _read_sizes_resnet(tensors: tower_kind.Tensors) -> tower_kind.Sizes:
    layers = sum(tower_kind.count_blocks(tensors, f"layer{stage}") for stage in (1, 2, 3, 4))
    width = tensors["visual.conv3.weight"].shape[0]
    return width, layers, STRIDE, tensors["visual.attnpool.c_proj.weight"].shape[0]


RESNET = tower_kind.TowerKind(
    name="ResNet",
    supports=functools.partial(_supports, True),
    build_image=_build_resnet,
    key_tensors={
        "visual.layer4.0.conv1.weight": 4,
        "visual.attnpool.c_proj.weight": 2,
        "visual.conv3.weight": 4,
    },
    read_sizes=_read_sizes_resnet,
    layouts=tower_kind.TEXT_AT_TOP,
    positions={"visual.attnpool.positional_embedding": tower_kind.PositionTable()},
    quick_gelu=True,
)
