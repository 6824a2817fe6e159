"""Embeddings of masks by a frozen CLIP, which are compared with the texts of classes.

There are three readouts of a mask: `MaskedAttention` is ODISE's, `DensePooling` replaces it for a CLIP with good dense
features (CLIPSelf, Table 6), `BackbonePooling` is FC-CLIP's, whose CLIP is the generator's backbone.

Shapes: Q queries, S texts, K classes, E embedding width, C channels of a map that is pooled, h x w cells of CLIP's
    grid, m x n pixels of a mask, H x W pixels of an image or canvas.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip import VisionLanguageBackbone
from clipself_seg.clip.precision import full_precision
from clipself_seg.clip.region_pooling import mask_weights, pool
from clipself_seg.clip.runtime import chunk_size, constant, on_cpu
from clipself_seg.clip.tower import DENSE
from clipself_seg.data.images import fit_size
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.feature_sources import MEAN_COLOUR, cell_side, on_grid, pad_image

MASKS_AT_ONCE = 16  # masks whose logits are in memory at CLIP's full input size, on a CPU
CELLS = 64  # cells a side in CLIPSelf's evaluation of masks


def visible_cells(
    logits_Qmn: Tensor,
    grid: tuple[int, int],
    patch: int,
    *,
    fraction: tuple[float, float] = (1.0, 1.0),
    shown: tuple[int, int] | None = None,
    binarise: str = "any",
) -> Tensor:
    """Boolean cells (Q, h, w) of a CLIP input of (h * patch, w * patch) pixels.

    Args:
        logits_Qmn: mask logits, positive inside a mask.
        grid: rows and columns of CLIP's grid, (h, w).
        patch: side of a cell in pixels.
        fraction: rows and columns of the mask map that the whole input covers, as a fraction of
            (m, n); above 1 where the input has padding that the map does not have.
        shown: rows and columns in pixels of the input that show the image; cells of the padding
            are never visible. None: the whole input.
        binarise: "any" opens a cell if a probability in it is at least one half (bilinear, at
            the input's size), "centre" if the logit at its centre is positive,
            "centre_or_any" is "centre", and "any" for masks that "centre" leaves without a cell.
    """
    rows, columns = shown or (grid[0] * patch, grid[1] * patch)
    if binarise == "any":
        return _any(logits_Qmn, grid, patch, fraction, (rows, columns))
    cells = _resample(logits_Qmn, grid, fraction) > 0
    centres_h, centres_w = (
        (torch.arange(count, device=cells.device) + 0.5) * patch for count in grid
    )
    cells = cells & (centres_h < rows)[:, None] & (centres_w < columns)
    if binarise == "centre_or_any":
        empty = ~cells.flatten(1).any(dim=1)
        rest = empty.nonzero()[:, 0] if on_cpu(cells) else slice(None)
        opened = _any(logits_Qmn[rest], grid, patch, fraction, (rows, columns))
        cells[rest] = torch.where(empty[rest, None, None], opened, cells[rest])
    return cells


def _any(
    logits_Qmn: Tensor,
    grid: tuple[int, int],
    patch: int,
    fraction: tuple[float, float],
    shown: tuple[int, int],
) -> Tensor:
    """Cells of the binarisation "any"; the arguments are those of `visible_cells`."""
    size = (grid[0] * patch, grid[1] * patch)
    cells = torch.zeros(len(logits_Qmn), *grid, dtype=torch.bool, device=logits_Qmn.device)
    count = chunk_size(logits_Qmn.device, MASKS_AT_ONCE, 2 * size[0] * size[1])
    parts: Sequence[Tensor | slice]
    if on_cpu(logits_Qmn):
        # Interpolation between negative logits is negative: such a mask opens no cell, and is left out.
        positive = (logits_Qmn.flatten(1) >= 0).any(dim=1).nonzero()[:, 0]
        parts = positive.split(count) if len(positive) else ()
    else:
        # A GPU would have to be waited for, to know which masks these are.
        parts = [slice(start, start + count) for start in range(0, len(logits_Qmn), count)]
    for part in parts:
        pixels = _resample(logits_Qmn[part], size, fraction)
        pixels[:, shown[0] :].fill_(-torch.inf)
        pixels[:, :, shown[1] :].fill_(-torch.inf)
        # A sigmoid is monotone: the largest probability is that of the largest logit.
        cells[part] = F.max_pool2d(pixels, patch) >= 0
    return cells


def _resample(logits_Qmn: Tensor, size: tuple[int, int], fraction: tuple[float, float]) -> Tensor:
    """Bilinear resize of the top left `fraction` of each map; beyond the map its border goes on."""
    if not logits_Qmn.is_floating_point() and len(logits_Qmn) > MASKS_AT_ONCE:
        # Masks that somebody gave, of a byte a pixel: not all of them as floats.
        parts = logits_Qmn.split(MASKS_AT_ONCE)
        return torch.cat([_resample(part, size, fraction) for part in parts])
    logits = logits_Qmn.float()
    if not len(logits):
        return logits.new_zeros(0, *size)
    if fraction == (1, 1):
        # The official operation: a cell near the threshold depends on the rounding, which is that of all maps at once
        # in parts of a CPU's vectors, in a sixth of the time.
        count = chunk_size(logits.device, MASKS_AT_ONCE, logits[0].numel())
        parts = [F.interpolate(p[None], size, mode="bilinear") for p in logits.split(count)]
        return torch.cat(parts, dim=1)[0]
    down, right = fraction
    # Maps [-1, 1] of the output to [-1, 2 * fraction - 1] of the map: the same top left corner.
    theta = constant([[[right, 0, right - 1], [0, down, down - 1]]], logits)
    with full_precision(logits.device):  # 8 bits are too coarse for places
        points = F.affine_grid(theta, [1, 1, *size], align_corners=False)
    return F.grid_sample(
        logits[None], points, mode="bilinear", padding_mode="border", align_corners=False
    )[0]


class ClipBranch(abc.ABC):
    """Class logits of masks by a frozen CLIP; subclasses say how CLIP reads a mask.

    It is no `nn.Module` and does not own its CLIP, so that one CLIP serves every part of a model.

    Attributes:
        clip: frozen CLIP; its text tower is not used.
        reads_backbone: True if a map of a generator's frozen backbone serves it, where that is its CLIP.
        choices: names of the attributes that decide the scores beside weights and vocabulary.
    """

    clip: VisionLanguageBackbone
    reads_backbone = False
    choices: tuple[str, ...]

    def settings(self) -> dict[str, object]:
        """Settings that decide the scores beside weights and vocabulary, with defaults filled in."""
        return {"kind": type(self).__name__} | {name: getattr(self, name) for name in self.choices}

    @abc.abstractmethod
    def size_text(self) -> str:
        """Says in words at what size CLIP reads an image."""

    def features_text(self, same_pass: bool) -> str:
        """Says in words what CLIP's embedding of a mask is.

        Args:
            same_pass: True if it is read of the generator's pass, see `reads_backbone`.
        """
        return self.clip.visual.description()

    @abc.abstractmethod
    def embed(
        self,
        image: Tensor,
        mask_logits: Tensor,
        canvas: tuple[int, int] | None = None,
        backbone_map: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Region embeddings (Q, E) of the masks, and (Q,) bool, True for masks with a visible cell.

        Args:
            image: (3, H, W), RGB in [0, 1], without padding.
            mask_logits: (Q, m, n) over the canvas, positive inside a mask.
            canvas: rows and columns in pixels that the masks cover: the image with its padding at
                the right and bottom. None: the image itself.
            backbone_map: map (1, C, h, w) of CLIP over the canvas that is pooled, where it is there already.

        Raises:
            InputError: the canvas is smaller than the image.
        """


class SquareBranch(ClipBranch):
    """A branch whose CLIP reads the image once more, resized to a square.

    Attributes:
        aspect: "square" squashes the image, "pad" keeps its aspect ratio and pads with black
            at the right and bottom.
        align_masks: True keeps a mask on the pixels that it covers in the image. False lays the
            canvas, padding included, over the image as if it had no padding (the official code).
        binarise: rule that opens a cell for a mask, one of those of `visible_cells`.
        interpolation: mode in which the image is resized, "bilinear" or "bicubic".
        antialias: True if the image is smoothed before it is made smaller.
    """

    choices = ("input_size", "aspect", "align_masks", "binarise", "interpolation", "antialias")
    aspect: str
    align_masks: bool
    binarise: str
    interpolation: str
    antialias: bool

    def __init__(
        self, clip: VisionLanguageBackbone, *, input_size: int | None = None, **choices: str | bool
    ) -> None:
        """
        Args:
            clip: frozen CLIP; its text tower is not used.
            input_size: side in pixels of the square input of CLIP; None: that of the kind.
            choices: attributes that differ from the kind's own.

        Raises:
            InputError: the patch does not divide the size.
        """
        self.clip = clip
        self.input_size = input_size or self._own_size()
        assert choices.keys() <= set(self.choices), choices
        for name, value in choices.items():
            setattr(self, name, value)
        clip.check_side(self.input_size, "MODEL.CLIP_BRANCH.INPUT_SIZE")

    @abc.abstractmethod
    def _own_size(self) -> int:
        """Side in pixels of CLIP's input where none is given."""

    @abc.abstractmethod
    def read(self, image_13SS: Tensor, cells_Qhw: Tensor) -> Tensor:
        """Embeddings (Q, E) of the boolean cells of masks in CLIP's input."""

    def size_text(self) -> str:
        return f'{self.input_size} x {self.input_size} px ("{self.aspect}")'

    @torch.no_grad()
    def embed(
        self,
        image: Tensor,
        mask_logits: Tensor,
        canvas: tuple[int, int] | None = None,
        backbone_map: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Region embeddings and which masks are visible, see `ClipBranch.embed`; a backbone's map is of no use here."""
        size = (image.shape[1], image.shape[2])
        cells_Qhw = self.cells(mask_logits, size, canvas or size)
        regions_QE = self.read(self.clip_input(image)[None], cells_Qhw)
        return regions_QE.float(), cells_Qhw.flatten(1).any(dim=1)

    def clip_input(self, image: Tensor) -> Tensor:
        """CLIP's input (3, input_size, input_size), normalised, for an image (3, H, W) in [0, 1]."""
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
        self, mask_logits: Tensor, image_size: tuple[int, int], canvas: tuple[int, int]
    ) -> Tensor:
        """Boolean cells (Q, h, w) that the masks make visible, see `ClipBranch.embed`."""
        if canvas[0] < image_size[0] or canvas[1] < image_size[1]:
            raise InputError(
                f"masks cover a canvas of {canvas[0]}x{canvas[1]} pixels, less than their image of "
                f"{image_size[0]}x{image_size[1]}: are they another image's?"
            )
        shown, patch = self._shown(image_size), self.clip.patch_size
        cells = self.input_size // patch
        valid = image_size if self.align_masks else canvas
        # The image's fraction of the mask map, extended by the padding of CLIP's own input.
        fraction_h, fraction_w = (
            valid[axis] / canvas[axis] * self.input_size / shown[axis] for axis in (0, 1)
        )
        return visible_cells(
            mask_logits,
            (cells, cells),
            patch,
            fraction=(fraction_h, fraction_w),
            shown=shown,
            binarise=self.binarise,
        )

    def _shown(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of CLIP's input that show the image."""
        if self.aspect == "square":
            return self.input_size, self.input_size
        columns, rows = fit_size(image_size[1], image_size[0], self.input_size)
        return rows, columns


class MaskedAttention(SquareBranch):
    """Mask tokens, copies of the class token, that attend to it and to the visible patches (ODISE).

    A mask without a visible patch attends to the class token alone, and scores roughly as the whole image does. Size
    (that of CLIP's image embeddings) and choices are ODISE's. It needs a ViT.
    """

    aspect = "square"
    align_masks = False
    binarise = "any"
    interpolation = "bilinear"
    antialias = False

    def _own_size(self) -> int:
        return self.clip.image_size

    def read(self, image_13SS: Tensor, cells_Qhw: Tensor) -> Tensor:
        return self.clip.visual.masked_attention(image_13SS, [cells_Qhw])

    def features_text(self, same_pass: bool) -> str:
        return "masked attention"


class DensePooling(SquareBranch):
    """Mean of the dense features in the visible cells (CLIPSelf).

    A mask without a visible cell has the embedding 0 and is not valid. Size and choices are those of CLIPSelf's
    evaluation of masks: 64 x 64 cells, aspect ratio kept, black padding.
    """

    aspect = "pad"
    align_masks = True
    binarise = "centre_or_any"
    interpolation = "bicubic"
    antialias = True

    def _own_size(self) -> int:
        return CELLS * self.clip.patch_size

    def read(self, image_13SS: Tensor, cells_Qhw: Tensor) -> Tensor:
        dense_1Ehw = F.normalize(self.clip.features(image_13SS, [DENSE])[DENSE], dim=1)
        regions_QE = pool(dense_1Ehw[0], mask_weights(cells_Qhw))
        return F.normalize(regions_QE, dim=-1)


class BackbonePooling(ClipBranch):
    """CLIP's own pool over the visible cells of its last stage, on the generator's canvas (FC-CLIP).

    A ViT has its dense features pooled. Where CLIP is the generator's backbone its map is read as it is: there is no
    second pass. A mask without a visible cell has an embedding, the same for all such masks, and is not valid.
    """

    reads_backbone = True
    choices = ("binarise",)

    def __init__(self, clip: VisionLanguageBackbone, *, padding: int = MEAN_COLOUR) -> None:
        """
        Args:
            clip: frozen CLIP.
            padding: grey value, 0 to 255, of the generator's canvas around an image, or `MEAN_COLOUR`.
        """
        self.clip = clip
        # FC-CLIP's for convolutions; for a ViT that of `DensePooling`.
        self.binarise = DensePooling.binarise if clip.visual.plain else "centre"
        self.padding = padding

    def size_text(self) -> str:
        return "the image at the generator's size"

    def features_text(self, same_pass: bool) -> str:
        if not self.clip.visual.plain:
            return "the backbone's last stage, pooled as CLIP pools it"
        where = "pass" if same_pass else "canvas"
        return f"{self.clip.visual.description()}, of the generator's {where}"

    @torch.no_grad()
    def embed(
        self,
        image: Tensor,
        mask_logits: Tensor,
        canvas: tuple[int, int] | None = None,
        backbone_map: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Region embeddings and which masks are visible, see `ClipBranch.embed`; without a backbone's map CLIP reads
        the image, padded as the generator's canvas is.
        """
        canvas = canvas or (image.shape[1], image.shape[2])
        if backbone_map is None:
            backbone_map = self.pooled_map(image, canvas)
        patch = cell_side(self.clip)
        grid = (backbone_map.shape[2], backbone_map.shape[3])
        cells_Qhw = visible_cells(
            mask_logits,
            grid,
            patch,
            fraction=(grid[0] * patch / canvas[0], grid[1] * patch / canvas[1]),
            shown=canvas,
            binarise=self.binarise,
        )
        regions_QE = self.clip.visual.pool_cells(backbone_map, cells_Qhw)
        return regions_QE.float(), cells_Qhw.flatten(1).any(dim=1)

    def pooled_map(self, image: Tensor, canvas: tuple[int, int]) -> Tensor:
        """The map (1, C, h, w) of CLIP that is pooled, over the canvas that masks cover."""
        side = cell_side(self.clip)
        height, width = (length + -length % side for length in canvas)
        sides = (0, width - image.shape[2], 0, height - image.shape[1])
        padded = pad_image(image.float()[None], sides, self.padding, self.clip.mean)
        name = self.clip.visual.pooled_map
        return self.clip.features(on_grid(self.clip, padded), [name])[name]


# Names of the branches in a configuration.
CLIP_BRANCHES: dict[str, type[ClipBranch]] = {
    "masked_attention": MaskedAttention,
    "dense": DensePooling,
    "backbone": BackbonePooling,
}
