"""The canvas of a mask generator, and the feature maps that it reads of a frozen CLIP.

`CLIPStages` gives the stages of a convolutional CLIP (FC-CLIP, arXiv 2308.02487). `CLIPPyramid` is for a ViT: the
features of its blocks are semantic but on one coarse grid; a few convolutions on the image add details (ViTDet, arXiv
2203.16527; ViT-Adapter, arXiv 2205.08534). `CLIPTaps` gives those blocks as they are, for a plain mask decoder (PMT,
arXiv 2603.25398). Stable Diffusion's features are in `heads.diffusion.source`.

Shapes: B images, C channels, h x w cells of CLIP's grid, H x W pixels of the canvas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip import VisionLanguageBackbone
from clipself_seg.clip.runtime import constant
from clipself_seg.clip.tower import DENSE, KEYS, QUERIES
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.pixel_decoder import GROUPS, STRIDES, normed_conv

# A value of MODEL.MASK_GENERATOR.PADDING: the mean colour of CLIP, which is 0 once it is normalised.
MEAN_COLOUR = -1


def pad_image(
    image: Tensor, sides: tuple[int, int, int, int], padding: int, mean: Sequence[float]
) -> Tensor:
    """An image with a colour around it.

    Args:
        image: (1, 3, h, w), RGB in [0, 1].
        sides: pixels to add on the left, right, top and bottom.
        padding: grey value, 0 to 255, of what is added; or `MEAN_COLOUR`, so that it is normalised to exactly 0.
        mean: of CLIP's pixels in [0, 1].
    """
    if padding != MEAN_COLOUR:
        return F.pad(image, sides, value=padding / 255)
    around = constant(list(mean), image)[:, None, None]
    outside = F.pad(torch.zeros_like(image[:, :1]), sides, value=1).bool()
    return torch.where(outside, around, F.pad(image, sides))


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Input of a mask generator in evaluation: an image at the top left, with padding at the right and bottom.

    Attributes:
        size_divisibility: pixels of which its sides are multiples.
        padding: grey value around the image, 0 to 255; `MEAN_COLOUR` is the mean colour of CLIP.
    """

    size_divisibility: int = 64
    padding: int = 0

    def size(self, image: Tensor) -> tuple[int, int]:
        """Rows and columns of the canvas of an image (3, h, w)."""
        height, width = image.shape[1:]
        divisor = self.size_divisibility
        return height + -height % divisor, width + -width % divisor

    def padded(self, image: Tensor, mean: Sequence[float]) -> Tensor:
        """The canvas (1, 3, H, W), RGB in [0, 1], of an image.

        Args:
            image: (3, h, w), RGB in 0..255.
            mean: of CLIP's pixels in [0, 1].
        """
        height, width = self.size(image)
        sides = (0, width - image.shape[2], 0, height - image.shape[1])
        return pad_image(image.float()[None] / 255, sides, self.padding, mean)


def cell_side(clip: VisionLanguageBackbone) -> int:
    """Side in pixels of a cell of a canvas: the smallest power of two that holds a patch."""
    return 1 << (clip.patch_size - 1).bit_length()


def on_grid(clip: VisionLanguageBackbone, images: Tensor) -> Tensor:
    """Normalised images for CLIP, in which a cell of `cell_side` is a patch: 16 pixels become 14.

    Args:
        clip: gives the patch.
        images: (B, 3, H, W) in [0, 1]; H and W are multiples of `cell_side`.
    """
    side, patch, pixels = cell_side(clip), clip.patch_size, clip.normalise(images)
    if side == patch:
        return pixels
    size = [length * patch // side for length in pixels.shape[2:]]
    return F.interpolate(pixels, size, mode="bilinear", align_corners=False)


class FeatureSource(nn.Module):
    """Feature maps of a mask generator: s2 to s5, or the taps of a plain decoder.

    CLIP is used but not registered as a submodule: it is frozen.

    Attributes:
        clip: frozen CLIP.
        channels: number of channels of each map by its name.
        frozen_prefixes: prefixes of state entries that a checkpoint does not hold.
        branch_map: name of the map that `BackbonePooling` pools, "" if no map is CLIP's own.
        taps: names of the maps where a checkpoint has to state them, as others have the same names and shapes of
            tensors.
    """

    channels: dict[str, int]
    frozen_prefixes: tuple[str, ...] = ()
    branch_map = ""
    taps: tuple[str, ...] = ()

    def __init__(self, clip: VisionLanguageBackbone) -> None:
        super().__init__()
        self._clip = (clip,)  # a tuple, so that CLIP is not registered as a submodule

    @property
    def clip(self) -> VisionLanguageBackbone:
        """CLIP, whose parameters are not those of the source."""
        return self._clip[0]


def _require_vit(clip: VisionLanguageBackbone, source: str) -> None:
    if not clip.visual.plain:
        raise InputError(
            f"MODEL.MASK_GENERATOR.SOURCE {source} needs a ViT, whose blocks have one grid, and {clip.name} is none"
        )


class CLIPStages(FeatureSource):
    """Maps of strides 4, 8, 16 and 32, as they leave CLIP's stages, without a parameter of its own.

    CLIP runs once for masks and for their names.
    """

    branch_map = "s5"

    def __init__(self, clip: VisionLanguageBackbone) -> None:
        """
        Args:
            clip: frozen CLIP with a ConvNeXt or a ResNet.

        Raises:
            InputError: the image tower has no stages of these strides.
        """
        super().__init__(clip)
        shapes = clip.visual.feature_shapes()
        stages = [shapes[f"block{i}"] for i in range(len(STRIDES)) if f"block{i}" in shapes]
        if [stage.stride for stage in stages] != list(STRIDES.values()):
            raise InputError(
                "MODEL.MASK_GENERATOR.SOURCE clip reads the stages of a ConvNeXt or a ResNet, MODEL.CLIP.NAME is "
                f"{clip.name}: take such a CLIP, or SOURCE pyramid for a ViT"
            )
        self.channels = {name: stage.channels for name, stage in zip(STRIDES, stages)}
        if clip.visual.pooled_map == DENSE:
            self.branch_map = ""  # the last stage is no map that its masks are named by

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps s2, s3, s4, s5 (B, channels, H / stride, W / stride) of RGB images.

        Args:
            images: (B, 3, H, W) in [0, 1], H and W multiples of 32.
        """
        names = {f"block{i}": name for i, name in enumerate(STRIDES)}
        features = self.clip.features(on_grid(self.clip, images), names)
        return {names[block]: features[block] for block in names}


def ends_of_quarters(depth: int) -> list[str]:
    """Names of the blocks after a quarter, a half and three quarters of a tower, and of the last one."""
    return [f"block{depth * part // 4 - 1}" for part in (1, 2, 3, 4)]


class CLIPTaps(FeatureSource):
    """Features of one pass of a frozen ViT, without a parameter: what its blocks give, behind its own final norm.

    The last block is that of `TransformerTower.features`: CLIPSelf's value path, where the tower has no pool.

    Attributes:
        stride: side in pixels of a cell.
        width: channels of the blocks.
    """

    def __init__(
        self, clip: VisionLanguageBackbone, *, taps: Sequence[str] = (), named: bool = False
    ) -> None:
        """
        Args:
            clip: frozen CLIP with a ViT.
            taps: names of features, ``block{i}`` or ``dense``; () is the ends of the four quarters of the blocks.
            named: True if ``dense`` is kept beside the taps, for a CLIP branch that names masks by it.

        Raises:
            InputError: the image tower is no ViT, or has no such feature; a tap is there twice.
        """
        super().__init__(clip)
        _require_vit(clip, "blocks")
        tower = clip.visual
        names = tower.check_names(taps or ends_of_quarters(tower.depth))
        shapes = tower.feature_shapes()
        self.channels = {name: shapes[name].channels for name in names}
        if len(self.channels) < len(names) or not {QUERIES, KEYS}.isdisjoint(names):
            raise InputError(
                f"MODEL.PLAIN_DECODER.TAPS is {', '.join(names)}: give block0 to block{tower.depth - 1} or dense, "
                "each once"
            )
        self.taps = tuple(self.channels)
        self.branch_map = DENSE if named else ""
        self.stride = cell_side(clip)
        blocks = [shapes[name].channels for name in shapes if name.startswith("block")]
        self.width = max(blocks, default=shapes[DENSE].channels)

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Taps (B, channels, H / stride, W / stride) by name of RGB images, and `branch_map` if it is kept.

        Args:
            images: (B, 3, H, W) in [0, 1], H and W multiples of the stride.
        """
        wanted = dict.fromkeys([*self.taps, *([self.branch_map] if self.branch_map else [])])
        maps = self.clip.features(on_grid(self.clip, images), wanted)
        named = dict[str, Tensor]()
        for name in wanted:
            named[name] = maps[name]
            if name != DENSE:
                normed = self.clip.visual.final_norm(maps[name].permute(0, 2, 3, 1))
                named[name] = normed.permute(0, 3, 1, 2)
        return named


class CLIPPyramid(FeatureSource):
    """Maps of strides 4, 8, 16 and 32 from some blocks of CLIP and from the image; all parameters train."""

    def __init__(
        self, clip: VisionLanguageBackbone, *, blocks: Sequence[int] = (), channels: int = 256
    ) -> None:
        """
        Args:
            clip: frozen CLIP with a ViT.
            blocks: indices (from 0) of the blocks of CLIP's image tower whose outputs are read; ()
                means after a quarter, a half and three quarters of them and the last.
            channels: number of channels C of each map, a multiple of 32.

        Raises:
            InputError: the image tower is no ViT, or has no such block.
        """
        super().__init__(clip)
        _require_vit(clip, "pyramid")
        tower = clip.visual
        assert channels % GROUPS == 0
        names = [f"block{i}" for i in blocks] or ends_of_quarters(tower.depth)
        self.names = tower.check_names(names)
        shapes = tower.feature_shapes()
        self.channels = dict.fromkeys(STRIDES, channels)
        self.stride = cell_side(clip)
        self.block_projections = nn.ModuleList(
            normed_conv(shapes[name].channels, channels, 1) for name in self.names
        )
        self.stem = nn.ModuleList(
            [_down(3, channels // 2), _down(channels // 2, channels), _down(channels, channels)]
        )
        self.up = nn.ModuleDict(
            {name: _up(channels, self.stride // stride) for name, stride in STRIDES.items()}
        )
        self.outputs = nn.ModuleDict({name: normed_conv(channels, channels, 3) for name in STRIDES})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps s2, s3, s4, s5 (B, C, H / stride, W / stride) of RGB images.

        Args:
            images: (B, 3, H, W) in [0, 1], H and W multiples of 32.
        """
        with torch.no_grad():
            features = self.clip.features(on_grid(self.clip, images), self.names)
        parts = [p(features[name]) for p, name in zip(self.block_projections, self.names)]
        cells = F.relu(torch.stack(parts).sum(dim=0))
        details = self.stem[1](self.stem[0](2 * images - 1))
        fine = {"s2": details, "s3": self.stem[2](details)}
        maps = {}
        for name, stride in STRIDES.items():
            coarse = self.up[name](cells)
            if stride > self.stride:
                coarse = F.avg_pool2d(coarse, stride // self.stride)
            summed = coarse + fine[name] if name in fine else coarse
            maps[name] = F.relu(self.outputs[name](summed))
        return maps


def _down(channels: int, width: int) -> nn.Sequential:
    """Convolution that halves the size, with group norm and ReLU."""
    convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
    groups = min(GROUPS, width // 8 or 1)
    return nn.Sequential(convolution, nn.GroupNorm(groups, width), nn.ReLU())


def _up(channels: int, factor: int) -> nn.Sequential:
    """Transposed convolutions that enlarge by `factor`, a power of two; none for factors up to 1."""
    steps: list[nn.Module] = []
    while factor > 1:
        steps += [nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)]
        steps += [nn.GroupNorm(GROUPS, channels), nn.ReLU()]
        factor //= 2
    return nn.Sequential(*steps)
