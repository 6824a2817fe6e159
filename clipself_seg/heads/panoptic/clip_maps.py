"""A frozen CLIP as the source of a mask generator's feature maps, without a diffusion model.

`CLIPStages` reads the stages of a convolutional CLIP (FC-CLIP, arXiv 2308.02487). `CLIPPyramid` makes a pyramid on
a ViT: the features of its blocks are semantic but on one coarse grid; a few convolutions on the image add details
(ViTDet, arXiv 2203.16527; ViT-Adapter, arXiv 2205.08534).

Shapes: B images, H x W pixels of the canvas, C channels, h x w cells of CLIP's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip import DenseCLIP
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.pixel_decoder import GROUPS, STRIDES, NormedConv

LAST = "s5"


class CLIPStages(nn.Module):
    """Maps of strides 4, 8, 16 and 32, as they leave CLIP's stages, without a parameter of its own.

    CLIP is used but not registered as a submodule: it is frozen, and runs once for masks and for their names.

    Attributes:
        channels: number of channels of each map by its name.
        frozen_prefixes: prefixes of state entries that a checkpoint does not hold.
    """

    frozen_prefixes: tuple[str, ...] = ()

    def __init__(self, clip: DenseCLIP) -> None:
        """
        Args:
            clip: frozen CLIP with a ConvNeXt or a ResNet.

        Raises:
            InputError: the image tower has no stages of these strides.
        """
        super().__init__()
        shapes = clip.visual.feature_shapes()
        stages = [shapes.get(f"block{i}", (0, 0)) for i in range(len(STRIDES))]
        if [stride for _, stride in stages] != list(STRIDES.values()):
            raise InputError(
                "MODEL.MASK_GENERATOR.SOURCE clip reads the stages of a ConvNeXt or a ResNet, MODEL.CLIP.NAME is "
                f"{clip.name}: take such a CLIP, or SOURCE pyramid for a ViT"
            )
        self._clip = (clip,)  # a tuple, so that CLIP is not registered as a submodule
        self.channels = {name: wide for name, (wide, _) in zip(STRIDES, stages)}

    def settings(self) -> dict[str, Any]:
        """Settings that decide the maps beside weights and shapes: none."""
        return {}

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps s2, s3, s4, s5 (B, channels, H / stride, W / stride) of RGB images.

        Args:
            images: (B, 3, H, W) in [0, 1], H and W multiples of 32.
        """
        (clip,) = self._clip
        names = {f"block{i}": name for i, name in enumerate(STRIDES)}
        features = clip.visual.features(clip.normalise(images), names)
        return {names[block]: features[block] for block in names}


class CLIPPyramid(nn.Module):
    """Maps of strides 4, 8, 16 and 32 from some blocks of CLIP and from the image.

    CLIP is used but not registered as a submodule: it stays frozen, and all parameters here train.

    Attributes:
        channels: number of channels of each map by its name.
        frozen_prefixes: prefixes of state entries that a checkpoint does not hold.
    """

    frozen_prefixes: tuple[str, ...] = ()

    def __init__(self, clip: DenseCLIP, *, blocks: Sequence[int] = (), channels: int = 256) -> None:
        """
        Args:
            clip: frozen CLIP with a ViT.
            blocks: indices (from 0) of the blocks of CLIP's image tower whose outputs are read; ()
                means after a quarter, a half and three quarters of them and the last.
            channels: number of channels C of each map, a multiple of 32.

        Raises:
            InputError: the image tower is no ViT, or has no such block; C is no multiple of 32.
        """
        super().__init__()
        tower = clip.visual
        if not tower.plain:
            raise InputError(
                f"a pyramid needs a ViT, whose blocks have one grid, and {clip.name} is none"
            )
        if channels < GROUPS or channels % GROUPS:
            raise InputError(f"MODEL.PYRAMID.CHANNELS is {channels}: give a multiple of {GROUPS}")
        depth = tower.depth
        blocks = blocks or [depth * part // 4 - 1 for part in (1, 2, 3, 4)]
        self._clip = (clip,)  # a tuple, so that CLIP is not registered as a submodule
        self.names = tower.check_names(f"block{i}" for i in blocks)
        shapes = tower.feature_shapes()
        self.channels = dict.fromkeys(STRIDES, channels)
        # The smallest power of two that holds a patch: images are enlarged so that 14 pixels become 16.
        self.stride = 1 << (clip.patch_size - 1).bit_length()
        self.block_projections = nn.ModuleList(
            NormedConv(shapes[name][0], channels, 1) for name in self.names
        )
        self.stem = nn.ModuleList(
            [_down(3, channels // 2), _down(channels // 2, channels), _down(channels, channels)]
        )
        self.up = nn.ModuleDict(
            {name: _up(channels, self.stride // stride) for name, stride in STRIDES.items()}
        )
        self.outputs = nn.ModuleDict({name: NormedConv(channels, channels, 3) for name in STRIDES})

    def settings(self) -> dict[str, Any]:
        """Settings that decide the maps beside weights and shapes."""
        return {"blocks": list(self.names)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps s2, s3, s4, s5 (B, C, H / stride, W / stride) of RGB images.

        Args:
            images: (B, 3, H, W) in [0, 1], H and W multiples of 32.
        """
        cells = self._cells(images)
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

    def _cells(self, images: Tensor) -> Tensor:
        """Sum of the projections of all blocks, (B, C, H / self.stride, W / self.stride)."""
        (clip,) = self._clip
        side_h, side_w = (side * clip.patch_size // self.stride for side in images.shape[2:])
        pixels = clip.normalise(images)
        if clip.patch_size != self.stride:
            pixels = F.interpolate(pixels, (side_h, side_w), mode="bilinear", align_corners=False)
        with torch.no_grad():
            features = clip.visual.features(pixels, self.names)
        parts = [p(features[name]) for p, name in zip(self.block_projections, self.names)]
        return F.relu(torch.stack(parts).sum(dim=0))


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
