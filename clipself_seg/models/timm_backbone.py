"""Frozen backbones of timm, whose feature maps are targets of token correlations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.runtime import constant
from clipself_seg.errors import InputError, in_short, nearest, of_extra

if TYPE_CHECKING:
    from clipself_seg.models.distillation import Step

KEY = "MODEL.CLIPSELF.CORRELATION.TEACHER"


class TimmBackbone:
    """A backbone of timm, by the feature map of its last block after the final norm, such as DINOv2's or PE-Spatial's.

    Images are resized so that its grid is the one that is asked for, and normalised as its weights want them.
    """

    def __init__(self, name: str, pretrained: bool = True) -> None:
        """
        Args:
            name: architecture of timm, with or without ".tag" of its weights.
            pretrained: False is random weights, from torch's current seed.

        Raises:
            InputError: timm is not there, or has no such architecture.
        """
        self.name = name
        self.pretrained = pretrained
        self._network: Any = None
        timm = _timm()
        if not timm.is_model(name):
            raise InputError(
                f'{KEY} "{name}" is neither none nor original nor a model of timm; '
                f"{nearest(name.partition('.')[0], timm.list_models())}"
            )

    def setup(self, device: torch.device) -> None:
        """Makes the network; timm fetches its weights, unless it has them.

        Raises:
            InputError: they cannot be fetched, or the network gives no feature maps of images of other sizes.
        """
        network = _create(self.name, self.pretrained)
        self._network = network.eval().requires_grad_(False).to(device)
        side = 0
        try:
            side = 4 * self.stride
            self._last_map(torch.zeros(1, 3, side, 2 * side, device=device))
        except Exception as error:  # timm has no error of its own for what a network lacks
            raise InputError(
                f"{KEY} {self.name} gives no feature map of an image of {2 * side} x {side} pixels "
                f"({in_short(error) or type(error).__name__}): take another backbone of timm"
            ) from None

    @property
    def stride(self) -> int:
        """Pixels of a cell of its features."""
        return int(self._network.feature_info[-1]["reduction"])

    def features(self, step: Step) -> Tensor:
        """Features (B, D, h, w) of the step's images on the student's grid, float32, without gradient."""
        assert self._network is not None, "call setup before the first image"
        settings: Any = self._network.pretrained_cfg
        grid = step.grid
        size = grid[0] * self.stride, grid[1] * self.stride
        with torch.no_grad():
            pixels = F.interpolate(step.pixels, size, mode="bilinear", antialias=True)
            shift, scale = (
                constant(settings[key], pixels)[:, None, None] for key in ("mean", "std")
            )
            with step.in_precision():
                maps = self._last_map((pixels - shift) / scale).float()
            if maps.shape[2:] != grid:
                maps = F.interpolate(maps, grid, mode="bilinear", align_corners=False)
        return maps

    def _last_map(self, images: Tensor) -> Tensor:
        (maps,) = self._network.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps


def _timm() -> Any:
    return of_extra("timm", f"the backbone of {KEY}", "timm")


def _create(name: str, pretrained: bool) -> nn.Module:
    """The network without a classifier, for images of any size if it can be."""
    # What timm reads may come from its cache or the hub; it loads tensors alone (weights_only).
    how = {"pretrained": pretrained, "num_classes": 0}
    try:
        try:
            return _timm().create_model(name, **how, dynamic_img_size=True)
        except TypeError:  # convolutions need no such argument and refuse it
            return _timm().create_model(name, **how)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{KEY} {name}: timm cannot load it ({in_short(error)}); without a network, let timm fetch it "
            "where there is one, and bring its cache"
        ) from None
