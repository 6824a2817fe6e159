"""The stages of a frozen convolutional CLIP as the maps of a mask generator (FC-CLIP, arXiv 2308.02487)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clipself_seg.clip import DenseCLIP
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.pixel_decoder import STRIDES

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
