"""The ConvNeXt towers of open_clip's CLIPs (arXiv 2201.03545): four stages of strides 4, 8, 16 and 32.

Such a CLIP embeds an image as the mean of its last stage, normed and projected: whoever pools some cells in place of
all has an embedding of these. Parameter names are those of open_clip's files, ``trunk.`` (timm's) and ``head.``.

Shapes: B images, D channels of a stage, E width of the embedding, h x w cells of 32 pixels, Q sets of cells.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clipself_seg.clip import tower_kind
from clipself_seg.clip.block_calls import run_block
from clipself_seg.clip.layers import TwoLayers
from clipself_seg.clip.linear import Linear
from clipself_seg.clip.positions import patch_grid
from clipself_seg.clip.region_pooling import mask_weights, pool
from clipself_seg.clip.tower import CONVOLUTIONS, DENSE, STEM, FeatureShape, ImageTower

STRIDE = 32
HEAD_EPS = 1e-6  # of all norms but those of the largest model


class ConvNeXtShape(NamedTuple):
    """Channels of the first stage, blocks of each stage, and the epsilon of its norms."""

    width: int
    depths: tuple[int, int, int, int]
    eps: float = HEAD_EPS


CONVNEXT_SHAPES = {  # by timm's names, but for the project's own
    "convnext_mini": ConvNeXtShape(16, (1, 1, 2, 1)),
    "convnext_tiny": ConvNeXtShape(96, (3, 3, 9, 3)),
    "convnext_small": ConvNeXtShape(96, (3, 3, 27, 3)),
    "convnext_base": ConvNeXtShape(128, (3, 3, 27, 3)),
    "convnext_large": ConvNeXtShape(192, (3, 3, 27, 3)),
    "convnext_xlarge": ConvNeXtShape(256, (3, 3, 27, 3)),
    "convnext_xxlarge": ConvNeXtShape(384, (3, 4, 30, 3), eps=1e-5),
}
PROJECTIONS = ("linear", "mlp")
FIRST_BLOCK = "visual.trunk.stages.0.blocks.0.conv_dw.weight"


class ConvNeXtTower(ImageTower):
    """Image tower of convolutions alone, for images of any size whose sides are multiples of 32.

    ``dense`` is the head in every cell, so that a mask's readout is the mean of projected cells; `pool_cells` projects
    the mean of cells, as the tower does for a whole image.
    """

    readouts = CONVOLUTIONS

    def __init__(
        self, *, shape: ConvNeXtShape, image_size: int, embed_dim: int, projection: str
    ) -> None:
        """
        Args:
            shape: widths and depths, one of `CONVNEXT_SHAPES`.
            image_size: side in pixels of the square images that the CLIP was trained with.
            embed_dim: width E of the embedding.
            projection: "linear", or "mlp" for one with a hidden layer of 2 E.
        """
        super().__init__()
        self.image_size = image_size
        self.patch_size = STRIDE
        self.embed_dim = embed_dim
        self.trunk = Trunk(shape)
        width = 8 * shape.width
        if projection == "mlp":
            self.head = nn.ModuleDict(
                {"mlp": TwoLayers(width=width, hidden=2 * embed_dim, out=embed_dim, bias=False)}
            )
        else:
            self.head = nn.ModuleDict({"proj": Linear(width, embed_dim, bias=False)})

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The four stages."""
        return self.trunk.stages

    def forward(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), not normalised, of normalised images (B, 3, H, W)."""
        last = f"block{len(self.blocks) - 1}"
        return self.project(self.features(images, [last])[last].mean(dim=(2, 3)))

    def features(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps by name: ``stem``, ``block{i}``, stage i's output without a norm, ``dense`` (B, E, h, w).

        Args:
            images: (B, 3, H, W), normalised.
            names: names of features.
        """
        wanted = self.check_names(names)
        patch_grid(images, STRIDE)
        maps: dict[str, Tensor] = {}
        # Blocks norm and project the channels of a cell, which lie together in this layout.
        x: Tensor = self.trunk.stem(images.contiguous(memory_format=torch.channels_last))
        if STEM in wanted:
            maps[STEM] = x
        for index, stage in enumerate(list(self.blocks)[: self.deepest(wanted) + 1]):
            x = stage(x, self.checkpointing)
            if f"block{index}" in wanted:
                maps[f"block{index}"] = x
        if DENSE in wanted:
            maps[DENSE] = self.project(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return maps

    def project(self, vectors: Tensor) -> Tensor:
        """Norm and projection of pooled or single cells of the last stage, (..., D) -> (..., E)."""
        normed = self.trunk.head["norm"](vectors)
        (projection,) = self.head.values()
        return projection(normed)

    def pool_cells(self, last_1Dhw: Tensor, cells_Qhw: Tensor) -> Tensor:
        """Projected means of cells, see `ImageTower.pool_cells`. A set without cells embeds the vector 0."""
        return self.project(pool(last_1Dhw[0], mask_weights(cells_Qhw)))

    def feature_shapes(self) -> dict[str, FeatureShape]:
        """Channels and stride in pixels of every feature that `features` can return, by name."""
        width = self.trunk.width
        stages = {f"block{i}": FeatureShape(width << i, 4 << i) for i in range(len(self.blocks))}
        ends = {STEM: FeatureShape(width, 4), DENSE: FeatureShape(self.embed_dim, STRIDE)}
        return stages | ends

    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """Ordered partition of the parameters: stem, positions (none), block0 .. block3, head."""
        return {
            "stem": list(self.trunk.stem.parameters()),
            "positions": [],
            **{f"block{i}": list(stage.parameters()) for i, stage in enumerate(self.blocks)},
            "head": [*self.trunk.head.parameters(), *self.head.parameters()],
        }


class Trunk(nn.Module):
    """Stem, stages, and the norm of what is pooled, under timm's names."""

    def __init__(self, shape: ConvNeXtShape) -> None:
        super().__init__()
        self.width = shape.width
        eps = shape.eps
        self.stem = nn.Sequential(nn.Conv2d(3, shape.width, 4, stride=4), MapNorm(shape.width, eps))
        widths = [shape.width << stage for stage in range(4)]
        before = [shape.width, *widths]
        self.stages = nn.ModuleList(
            Stage(narrow, wide, depth, eps)
            for narrow, wide, depth in zip(before, widths, shape.depths)
        )
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(widths[-1], eps)})
        self.apply(_initialise)


class Stage(nn.Module):
    """Blocks of one width; all stages but the first halve the map before."""

    def __init__(self, narrow: int, wide: int, depth: int, eps: float) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if narrow != wide:
            halving = nn.Conv2d(narrow, wide, 2, stride=2)
            self.downsample = nn.Sequential(MapNorm(narrow, eps), halving)
        self.blocks = nn.ModuleList(Block(wide, eps) for _ in range(depth))

    def forward(self, x: Tensor, checkpointing: bool = False) -> Tensor:
        """Transforms (B, narrow, h, w) into (B, wide, h', w')."""
        x = self.downsample(x)
        for block in self.blocks:
            x = run_block(block, x, checkpointing=checkpointing)
        return x


class Block(nn.Module):
    """Convolution of each channel, norm and MLP of each cell, a factor for each channel; residual."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps)
        self.mlp = TwoLayers(width=width, hidden=4 * width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Transforms (B, D, h, w) into the same shape."""
        cells = self.conv_dw(x).permute(0, 2, 3, 1)
        return x + (self.mlp(self.norm(cells)) * self.gamma).permute(0, 3, 1, 2)


class MapNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (B, D, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        """Transforms (B, D, h, w) into the same shape."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _initialise(module: nn.Module) -> None:
    """timm's initialisation of the trunk, whose normal is cut where there is nothing to cut."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _supports(config: tower_kind.Config) -> bool:
    vision = config["vision_cfg"]
    return (
        tower_kind.has_clip_text(config)
        and vision.get("timm_model_name") in CONVNEXT_SHAPES
        and vision.get("timm_pool") in ("", "avg")
        and vision.get("timm_proj") in PROJECTIONS
    )


def _build(architecture: tower_kind.Architecture, quick_gelu: bool) -> ConvNeXtTower:
    vision = architecture.vision
    return ConvNeXtTower(
        shape=CONVNEXT_SHAPES[vision["timm_model_name"]],
        image_size=vision.get("image_size", 224),
        embed_dim=architecture.embed_dim,
        projection=vision["timm_proj"],
    )


def _read_sizes(tensors: tower_kind.Tensors) -> tower_kind.Sizes:
    layers = sum(
        tower_kind.count_blocks(tensors, f"trunk.stages.{stage}.blocks") for stage in range(4)
    )
    projections = ("visual.head.mlp.fc2.weight", "visual.head.proj.weight")
    embed_dim = next((len(tensors[name]) for name in projections if name in tensors), 0)
    return len(tensors[FIRST_BLOCK]), layers, STRIDE, embed_dim


def _read(tensors: tower_kind.Tensors) -> dict[str, Tensor]:
    """Native names are open_clip's, but for the text tower, which files have at their top level."""
    return {
        f"text.{name}" if name.startswith(tower_kind.TEXT_PARTS) else name: tensor
        for name, tensor in tensors.items()
    }


CONVNEXT = tower_kind.TowerKind(
    name="ConvNeXt",
    supports=_supports,
    build_image=_build,
    key_tensors={FIRST_BLOCK: 4, "visual.trunk.head.norm.weight": 1},
    read_sizes=_read_sizes,
    layouts=dict.fromkeys(
        ("official", "open_clip"),
        tower_kind.Layout(marks=(FIRST_BLOCK,), read=_read, write=tower_kind.text_at_top),
    ),
    positions={},
)
