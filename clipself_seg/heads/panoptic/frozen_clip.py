"""What panoptic segmentation reads from a frozen CLIP: class scores of masks, and the maps of a mask generator.

A branch gives each mask an embedding, which is compared with the texts. There are three readouts of a mask:
`MaskedAttention` is ODISE's, `DensePooling` replaces it for a CLIP with good dense features (CLIPSelf, Table 6),
`BackbonePooling` is FC-CLIP's, whose CLIP is the generator's backbone.

Maps without a diffusion model come from `CLIPStages`, the stages of a convolutional CLIP (FC-CLIP, arXiv 2308.02487),
or from `CLIPPyramid` on a ViT: the features of its blocks are semantic but on one coarse grid; a few convolutions on
the image add details (ViTDet, arXiv 2203.16527; ViT-Adapter, arXiv 2205.08534). `CLIPTaps` gives those blocks as they
are, for a plain mask decoder (PMT, arXiv 2603.25398).

Shapes: B images, Q queries, S texts, K classes, E embedding width, C channels, D those of CLIP's last stage, h x w
    cells of CLIP's grid, m x n pixels of a mask, H x W pixels of an image or canvas.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip import VisionLanguageBackbone
from clipself_seg.clip.runtime import chunk_size, constant, full_precision, on_cpu
from clipself_seg.clip.tower import DENSE, KEYS, QUERIES, ImageTower
from clipself_seg.data.images import fit_size
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.pixel_decoder import GROUPS, STRIDES, NormedConv
from clipself_seg.heads.text_scores import class_logits

MASKS_AT_ONCE = 16  # masks whose logits are in memory at CLIP's full input size, on a CPU
# A value of MODEL.MASK_GENERATOR.PADDING: the mean colour of CLIP, which is 0 once it is normalised.
MEAN_COLOUR = -1
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
    for part in _parts(logits_Qmn, size[0] * size[1]):
        pixels = _resample(logits_Qmn[part], size, fraction)
        pixels[:, shown[0] :].fill_(-torch.inf)
        pixels[:, :, shown[1] :].fill_(-torch.inf)
        # A sigmoid is monotone: the largest probability is that of the largest logit.
        cells[part] = F.max_pool2d(pixels, patch) >= 0
    return cells


def _parts(logits_Qmn: Tensor, pixels: int) -> Iterator[Tensor | slice]:
    """Yields indices of masks that are resampled together, to some number of pixels each.

    Interpolation between negative logits is negative: such a mask opens no cell, and a CPU leaves it out. A GPU would
    have to be waited for, to know which they are.
    """
    count = chunk_size(logits_Qmn.device, MASKS_AT_ONCE, 2 * pixels)
    if not on_cpu(logits_Qmn):
        yield from (slice(start, start + count) for start in range(0, len(logits_Qmn), count))
        return
    positive = (logits_Qmn.flatten(1) >= 0).any(dim=1).nonzero()[:, 0]
    yield from positive.split(count) if len(positive) else ()


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


class ClipBranch(abc.ABC):
    """Computes class logits from an image and mask logits; subclasses implement the readout.

    It is no `nn.Module` and does not own its CLIP, so that one CLIP serves every part of a model.

    Attributes:
        clip: frozen CLIP; its text tower is not used.
        reads_backbone: whether a map of a generator's frozen backbone serves it, where that is its CLIP.
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
        """In words, at what size CLIP reads an image."""

    @torch.no_grad()
    def score(
        self,
        image: Tensor,
        mask_logits: Tensor,
        text_SE: Tensor,
        synonyms: Sequence[int],
        canvas: tuple[int, int] | None = None,
        backbone_map: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Class logits of the masks, and which masks have a visible cell.

        Args:
            image: (3, H, W), RGB in [0, 1], without padding.
            mask_logits: (Q, m, n) over the canvas, positive inside a mask.
            text_SE: text embeddings, the synonyms of a class one after another.
            synonyms: number of texts of each class.
            canvas: rows and columns in pixels that the masks cover: the image with its padding at
                the right and bottom. None: the image itself.
            backbone_map: map (1, C, h, w) of CLIP over the canvas that is pooled, where it is there already.

        Returns:
            Class logits (Q, K), the largest scaled cosine among a class's synonyms; and (Q,) bool,
            True for masks with at least one visible cell.

        Raises:
            InputError: the canvas is smaller than the image.
        """
        regions_QE, valid = self.embed(image, mask_logits, canvas, backbone_map)
        return class_logits(regions_QE, text_SE, synonyms, self.clip.similarity_scale), valid

    @torch.no_grad()
    def embed(
        self,
        image: Tensor,
        mask_logits: Tensor,
        canvas: tuple[int, int] | None = None,
        backbone_map: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Region embeddings (Q, E) of the masks, and (Q,) bool, True for masks with a visible cell.

        The arguments are those of `score`.
        """
        covered = canvas or (image.shape[1], image.shape[2])
        regions_QE, cells_Qhw = self._read(image, mask_logits, covered, backbone_map)
        return regions_QE.float(), cells_Qhw.flatten(1).any(dim=1)

    @abc.abstractmethod
    def _read(
        self,
        image: Tensor,
        mask_logits: Tensor,
        canvas: tuple[int, int],
        backbone_map: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Region embeddings (Q, E) of the masks, and the cells (Q, h, w) that each makes visible, bool."""


class SquareBranch(ClipBranch):
    """A branch whose CLIP reads the image once more, resized to a square.

    Attributes:
        aspect: "square" squashes the image, "pad" keeps its aspect ratio and pads with black
            at the right and bottom.
        align_masks: True keeps a mask on the pixels that it covers in the image. False lays the
            canvas, padding included, over the image as if it had no padding (the official code).
        binarise: rule that opens a cell for a mask, one of those of `visible_cells`.
        interpolation: how the image is resized, "bilinear" or "bicubic".
        antialias: whether the image is smoothed before it is made smaller.
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

    def size_text(self) -> str:
        """In words, at what size CLIP reads an image."""
        return f'{self.input_size} x {self.input_size} px ("{self.aspect}")'

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of CLIP's grid, (h, w)."""
        cells = self.input_size // self.clip.patch_size
        return cells, cells

    def _read(
        self,
        image: Tensor,
        mask_logits: Tensor,
        canvas: tuple[int, int],
        backbone_map: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """As `ClipBranch._read`; a backbone's map is of no use here."""
        cells_Qhw = self.cells(mask_logits, (image.shape[1], image.shape[2]), canvas)
        return self._readout(self.clip_input(image)[None], cells_Qhw), cells_Qhw

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
        """Boolean cells (Q, h, w) that the masks make visible; the arguments are those of `score`."""
        if canvas[0] < image_size[0] or canvas[1] < image_size[1]:
            raise InputError(
                f"masks cover a canvas of {canvas[0]}x{canvas[1]} pixels, less than their image of "
                f"{image_size[0]}x{image_size[1]}: are they another image's?"
            )
        shown = self._shown(image_size)
        valid = image_size if self.align_masks else canvas
        # The image's fraction of the mask map, extended by the padding of CLIP's own input.
        fraction_h, fraction_w = (
            valid[axis] / canvas[axis] * self.input_size / shown[axis] for axis in (0, 1)
        )
        return visible_cells(
            mask_logits,
            self.grid,
            self.clip.patch_size,
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

    @abc.abstractmethod
    def _readout(self, images: Tensor, cells_Qhw: Tensor) -> Tensor:
        """Embeddings (Q, E) of the visible cells of one image (1, 3, S, S)."""


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

    def _readout(self, images: Tensor, cells_Qhw: Tensor) -> Tensor:
        return self.clip.visual.masked_attention(images, [cells_Qhw])


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

    def _readout(self, images: Tensor, cells_Qhw: Tensor) -> Tensor:
        return self.clip.encode_masks(images, [cells_Qhw])


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
        """In words, at what size CLIP reads an image."""
        return "the image at the generator's size"

    def _read(
        self,
        image: Tensor,
        mask_logits: Tensor,
        canvas: tuple[int, int],
        backbone_map: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """As `ClipBranch._read`; without a backbone's map CLIP reads the image, padded as the generator's canvas is."""
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
        return self.clip.visual.pool_cells(backbone_map, cells_Qhw), cells_Qhw

    def pooled_map(self, image: Tensor, canvas: tuple[int, int]) -> Tensor:
        """The map (1, C, h, w) of CLIP that is pooled, over the canvas that masks cover."""
        side = cell_side(self.clip)
        height, width = (length + -length % side for length in canvas)
        sides = (0, width - image.shape[2], 0, height - image.shape[1])
        padded = pad_image(image.float()[None], sides, self.padding, self.clip.mean)
        pixels, name = self.clip.normalise(padded), self.clip.visual.pooled_map
        return self.clip.features(on_grid(self.clip, pixels), [name])[name]


# Names of the branches in a configuration.
CLIP_BRANCHES: dict[str, type[ClipBranch]] = {
    "masked_attention": MaskedAttention,
    "dense": DensePooling,
    "backbone": BackbonePooling,
}


def cell_side(clip: VisionLanguageBackbone) -> int:
    """Side in pixels of a cell of a canvas: the smallest power of two that holds a patch."""
    return 1 << (clip.patch_size - 1).bit_length()


def on_grid(clip: VisionLanguageBackbone, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) so that a cell of `cell_side` is a patch: 16 pixels become 14; others stay as they are.

    Args:
        clip: gives the patch.
        pixels: normalised; H and W are multiples of `cell_side`.
    """
    side, patch = cell_side(clip), clip.patch_size
    if side == patch:
        return pixels
    size = [length * patch // side for length in pixels.shape[2:]]
    return F.interpolate(pixels, size, mode="bilinear", align_corners=False)


class FeatureSource(nn.Module):
    """What makes the feature maps of a mask generator: s2 to s5, or the taps of a plain decoder.

    CLIP is used but not registered as a submodule: it is frozen.

    Attributes:
        clip: frozen CLIP.
        channels: number of channels of each map by its name.
        frozen_prefixes: prefixes of state entries that a checkpoint does not hold.
        branch_map: name of the map that `BackbonePooling` pools, "" if no map is CLIP's own.
    """

    channels: dict[str, int]
    frozen_prefixes: tuple[str, ...] = ()
    branch_map = ""

    def __init__(self, clip: VisionLanguageBackbone) -> None:
        super().__init__()
        self._clip = (clip,)  # a tuple, so that CLIP is not registered as a submodule

    @property
    def clip(self) -> VisionLanguageBackbone:
        """CLIP, whose parameters are not those of the source."""
        return self._clip[0]

    @torch.no_grad()
    def _read(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Features by name of one pass of CLIP over images (B, 3, H, W) in [0, 1], a cell to `cell_side` pixels."""
        return self.clip.features(on_grid(self.clip, self.clip.normalise(images)), names)


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

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps s2, s3, s4, s5 (B, channels, H / stride, W / stride) of RGB images.

        Args:
            images: (B, 3, H, W) in [0, 1], H and W multiples of 32.
        """
        names = {f"block{i}": name for i, name in enumerate(STRIDES)}
        features = self._read(images, names)
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
            named: whether ``dense`` is kept beside the taps, for a CLIP branch that names masks by it.

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
        wanted = dict.fromkeys([*self.channels, *([self.branch_map] if self.branch_map else [])])
        maps, tower = self._read(images, wanted), self.clip.visual
        return {
            name: maps[name] if name == DENSE else _normed(tower, maps[name]) for name in wanted
        }


def _normed(tower: ImageTower, map_BDhw: Tensor) -> Tensor:
    return tower.final_norm(map_BDhw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


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
            NormedConv(shapes[name].channels, channels, 1) for name in self.names
        )
        self.stem = nn.ModuleList(
            [_down(3, channels // 2), _down(channels // 2, channels), _down(channels, channels)]
        )
        self.up = nn.ModuleDict(
            {name: _up(channels, self.stride // stride) for name, stride in STRIDES.items()}
        )
        self.outputs = nn.ModuleDict({name: NormedConv(channels, channels, 3) for name in STRIDES})

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
        features = self._read(images, self.names)
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
