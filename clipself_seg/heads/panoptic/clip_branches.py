"""CLIP's opinion on a generator's masks: an embedding for each mask, scored by the texts.

Two ways of reading a mask: `MaskedAttention` is ODISE's, `DensePooling` takes its place for a CLIP with
good dense features (CLIPSelf, Table 6).

Shapes: Q queries, S texts, K classes, E embedding, h x w cells of CLIP's grid, m x n pixels of a mask.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip import DenseCLIP
from clipself_seg.data.images import fit_size
from clipself_seg.errors import InputError, nearest
from clipself_seg.heads.panoptic.class_logits import class_logits, similarity_scale
from clipself_seg.heads.panoptic.mask_cells import BINARISATIONS, visible_cells

ASPECTS = ("square", "pad")
INTERPOLATIONS = ("bilinear", "bicubic")
CELLS = 64  # a side in CLIPSelf's evaluation of masks


class ClipBranch(abc.ABC):
    """From an image and mask logits to class logits; subclasses say how cells become an embedding.

    Holds its CLIP, but does not own it: not a module, so that one CLIP serves everything.
    """

    def __init__(
        self,
        clip: DenseCLIP,
        *,
        input_size: int,
        aspect: str,
        align_masks: bool,
        binarise: str,
        interpolation: str,
        antialias: bool,
    ) -> None:
        """
        Args:
            clip: frozen; its text tower is not used.
            input_size: side in pixels of the square that CLIP sees.
            aspect: "square" squashes the image, "pad" keeps its aspect and fills with black
                at the right and bottom.
            align_masks: a mask covers the pixels that it covers in the image. False lays the canvas,
                padding included, over the image as if it were not padded (the official code).
            binarise: see `visible_cells`.
            interpolation: "bilinear" or "bicubic", of the image.
            antialias: smooth the image before it is made smaller.

        Raises:
            InputError: an unknown choice, or a size that the patch does not divide.
        """
        for key, value, known in (
            ("aspect", aspect, ASPECTS),
            ("binarise", binarise, BINARISATIONS),
            ("interpolation", interpolation, INTERPOLATIONS),
        ):
            if value not in known:
                raise InputError(f'CLIP branch: no {key} "{value}"; {nearest(value, known)}')
        if input_size < 1 or input_size % clip.patch_size:
            raise InputError(
                f"CLIP branch: an input of {input_size} pixels is no multiple of the patch of "
                f"{clip.name}, {clip.patch_size}"
            )
        self.clip, self.input_size, self.aspect = clip, input_size, aspect
        self.align_masks, self.binarise = align_masks, binarise
        self.interpolation, self.antialias = interpolation, antialias

    def facts(self) -> dict[str, Any]:
        """What decides the scores beside weights and words: the values behind "the kind's own"."""
        names = ("input_size", "aspect", "align_masks", "binarise", "interpolation", "antialias")
        return {"kind": type(self).__name__} | {name: getattr(self, name) for name in names}

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)"""
        cells = self.input_size // self.clip.patch_size
        return cells, cells

    @torch.no_grad()
    def score(
        self,
        image: Tensor,
        mask_logits: Tensor,
        text_SE: Tensor,
        synonyms: Sequence[int],
        canvas: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Class logits of the masks, and which of them CLIP could see.

        Args:
            image: (3, H, W), RGB in [0, 1], without padding.
            mask_logits: (Q, m, n), positive inside, over the canvas.
            text_SE: text embeddings, the synonyms of a class one after another.
            synonyms: how many texts each class has.
            canvas: rows and columns in pixels that the masks cover: the image with the padding at
                its right and bottom. None: the image itself.

        Returns:
            (Q, K): scaled cosine, the best of a class's synonyms; and (Q,) bool: whether a cell of the
            grid was visible.

        Raises:
            InputError: a canvas smaller than the image, or counts that do not fit the texts.
        """
        regions_QE, valid = self.embed(image, mask_logits, canvas)
        scale = similarity_scale(self.clip.logit_scale)
        return class_logits(regions_QE, text_SE, synonyms, scale), valid

    @torch.no_grad()
    def embed(
        self, image: Tensor, mask_logits: Tensor, canvas: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Region embeddings (Q, E), and (Q,) bool as in `score`, whose arguments these are."""
        cells_Qhw = self.cells(mask_logits, (image.shape[1], image.shape[2]), canvas)
        regions = self._read(self.clip_input(image)[None], cells_Qhw)
        return regions.float(), cells_Qhw.flatten(1).any(dim=1)

    def clip_input(self, image: Tensor) -> Tensor:
        """What CLIP sees of an image (3, H, W) in [0, 1]: normalised, (3, input_size, input_size)."""
        rows, columns = self._shown((image.shape[1], image.shape[2]))
        resized = F.interpolate(
            image[None].float(),
            (rows, columns),
            mode=self.interpolation,
            align_corners=False,
            antialias=self.antialias,
        )[0]
        resized = resized.clamp(0, 1)  # bicubic overshoots
        square = F.pad(resized, (0, self.input_size - columns, 0, self.input_size - rows))
        return self.clip.normalise(square)

    def cells(
        self,
        mask_logits: Tensor,
        image_size: tuple[int, int],
        canvas: tuple[int, int] | None = None,
    ) -> Tensor:
        """Boolean cells (Q, h, w) that the masks make visible; arguments as in `score`."""
        canvas = canvas or image_size
        if canvas[0] < image_size[0] or canvas[1] < image_size[1]:
            raise InputError(
                f"masks cover a canvas of {canvas[0]}x{canvas[1]} pixels, less than their image of "
                f"{image_size[0]}x{image_size[1]}: are they another image's?"
            )
        shown = self._shown(image_size)
        valid = image_size if self.align_masks else canvas
        share_h, share_w = (
            valid[axis] / canvas[axis] * self.input_size / shown[axis] for axis in (0, 1)
        )
        return visible_cells(
            mask_logits,
            self.grid,
            self.clip.patch_size,
            share=(share_h, share_w),
            shown=shown,
            binarise=self.binarise,
        )

    def _shown(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of CLIP's input that show the image."""
        if self.aspect == "square":
            return self.input_size, self.input_size
        columns, rows = fit_size(image_size[1], image_size[0], self.input_size)
        return rows, columns

    @abc.abstractmethod
    def _read(self, images: Tensor, cells_Qhw: Tensor) -> Tensor:
        """(1, 3, S, S) and the visible cells -> (Q, E)"""


class MaskedAttention(ClipBranch):
    """Copies of the class token that attend to the class token and the visible patches (ODISE).

    A mask without visible patch sees the class token alone: roughly the image's own classes.
    Defaults are ODISE's. Needs a ViT.
    """

    def __init__(
        self,
        clip: DenseCLIP,
        *,
        input_size: int | None = None,
        aspect: str = "square",
        align_masks: bool = False,
        binarise: str = "any",
        interpolation: str = "bilinear",
        antialias: bool = False,
    ) -> None:
        """Arguments of `ClipBranch`; an `input_size` of None is the size of CLIP's image embeddings."""
        super().__init__(
            clip,
            input_size=input_size or clip.image_size,
            aspect=aspect,
            align_masks=align_masks,
            binarise=binarise,
            interpolation=interpolation,
            antialias=antialias,
        )

    def _read(self, images: Tensor, cells_Qhw: Tensor) -> Tensor:
        return self.clip.visual.observe_regions(images, [cells_Qhw])


class DensePooling(ClipBranch):
    """The mean of the dense features in the visible cells (CLIPSelf).

    A mask without visible cell has the embedding 0 and is not valid. Defaults are those of
    CLIPSelf's evaluation of masks: 64 x 64 cells, aspect kept, black padding.
    """

    def __init__(
        self,
        clip: DenseCLIP,
        *,
        input_size: int | None = None,
        aspect: str = "pad",
        align_masks: bool = True,
        binarise: str = "centre_or_any",
        interpolation: str = "bicubic",
        antialias: bool = True,
    ) -> None:
        """Arguments of `ClipBranch`; an `input_size` of None is 64 cells a side."""
        super().__init__(
            clip,
            input_size=input_size or CELLS * clip.patch_size,
            aspect=aspect,
            align_masks=align_masks,
            binarise=binarise,
            interpolation=interpolation,
            antialias=antialias,
        )

    def _read(self, images: Tensor, cells_Qhw: Tensor) -> Tensor:
        return self.clip.encode_masks(images, [cells_Qhw])


# The names that a configuration gives them.
CLIP_BRANCHES: dict[str, type[MaskedAttention] | type[DensePooling]] = {
    "masked_attention": MaskedAttention,
    "dense": DensePooling,
}
