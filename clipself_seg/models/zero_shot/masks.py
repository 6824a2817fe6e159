"""Training-free segmentation in CorrCLIP's form: dense features within given masks, such as Segment Anything's.

Shapes: n masks, E embedding, h x w cells of a window, twice as fine as CLIP's.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.corrclip import FINER, dense_in_masks, mask_class_tokens, with_class_tokens
from clipself_seg.clip.tower import ImageTower, TransformerTower
from clipself_seg.clip.training_free import NONE
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.errors import InputError
from clipself_seg.models.inputs import on_device
from clipself_seg.models.protocol import features_text
from clipself_seg.models.timm_backbone import TimmMaps

OWN = "clip"  # value of MODEL.ZERO_SHOT.CORRELATION for CLIP's own features
KEY = "MODEL.ZERO_SHOT.CORRELATION"


class DenseInMasks(nn.Module):
    """Makes dense features of a window within its masks, see `clip.corrclip`.

    Attributes:
        correlation: name of the model whose features say how alike places are.
    """

    def __init__(self, clip: DenseCLIP, correlation: str = OWN, pretrained: bool = True) -> None:
        """
        Args:
            clip: CLIP with a ViT, whose attention is its own.
            correlation: see the attribute; "clip" for its own dense feature, or a backbone of timm by name.
            pretrained: False is a backbone of random weights, from torch's current seed.

        Raises:
            InputError: a tower that is no ViT, has an attention pool, or a patch with an odd side; an attention without
                training beside this one; a backbone that timm does not have.
        """
        super().__init__()
        tower = clip.visual
        alone = isinstance(tower, TransformerTower) and not tower.pooled
        if not alone or tower.patch_size % FINER:
            raise InputError(
                "MODEL.ZERO_SHOT.MASKS needs a ViT whose last block makes the embedding, and a patch of an even side, "
                f"which {clip.name} has not: leave it empty, or take another CLIP"
            )
        if tower.attention != NONE:
            raise InputError(
                f"MODEL.CLIP.ATTENTION {tower.attention} and MODEL.ZERO_SHOT.MASKS both say where the last block "
                f"attends: leave the one at {NONE}, or the other empty"
            )
        self.correlation = correlation
        self.network: nn.Module | None = None
        self._backbone: TimmMaps | None = None
        if correlation != OWN:
            self._backbone = TimmMaps(correlation, pretrained, key=KEY, others=OWN)
            self._backbone.setup(torch.device("cpu"))
            self.network = self._backbone.network

    def text(self, tower: ImageTower) -> str:
        """What the features are, for the protocol of a table, with CLIP's image tower."""
        whose = self.correlation if self._backbone else features_text(tower)
        return f"CorrCLIP's form in given masks, correlations of {whose}"

    def dense(
        self,
        tower: Any,
        pixels: Tensor,
        normalised: Tensor,
        cells_nhw: Tensor,
        precision: contextlib.AbstractContextManager,
    ) -> Tensor:
        """Dense features (E, h, w) of a window.

        Args:
            tower: CLIP's image tower, a ViT.
            pixels: (1, 3, H, W), RGB in [0, 1].
            normalised: the same, normalised for CLIP.
            cells_nhw: boolean masks; those without a cell count nowhere.
            precision: context in which networks compute.
        """
        cells_nhw = cells_nhw[cells_nhw.flatten(1).any(dim=1)]
        with precision:
            grid = (cells_nhw.shape[1], cells_nhw.shape[2])
            features = self._features(tower, pixels, normalised, grid)
            dense_Ehw = dense_in_masks(tower, normalised, features, cells_nhw[None])[0].float()
            tokens_nE = mask_class_tokens(tower, normalised, cells_nhw)
        return with_class_tokens(dense_Ehw, tokens_nE, cells_nhw)

    def _features(
        self, tower: ImageTower, pixels: Tensor, normalised: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        if self._backbone is not None:
            return self._backbone.maps(pixels, grid, contextlib.nullcontext())
        own = tower.dense(normalised).float()
        return F.interpolate(own, grid, mode="bilinear", align_corners=False)


def given_masks(sample: Sample, output: str, device: torch.device) -> Tensor:
    """The masks (n, H, W) of a sample, on a device.

    Raises:
        InputError: it has none, or of another size; or another output than labels is wanted.
    """
    if output != "labels":
        raise InputError(
            f'no output "{output}" with MODEL.ZERO_SHOT.MASKS, whose last step is a vote on labels: ask for "labels"'
        )
    if "given_masks" not in sample:
        raise InputError(
            "MODEL.ZERO_SHOT.MASKS is for data sets, whose mapper reads the masks of each image: leave it empty"
        )
    (masks_nHW,) = on_device([sample], "given_masks", device)
    height, width = sample["image"].shape[1:]
    size = (sample.get("height", height), sample.get("width", width))
    if tuple(masks_nHW.shape[1:]) != size:
        raise InputError(f"masks of {tuple(masks_nHW.shape[1:])} pixels, the image has {size}")
    return masks_nHW
