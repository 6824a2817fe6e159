"""Panoptic segmentation as one file of ONNX: from an image to mask logits and fused class scores of the queries.

The graph pads the image to its canvas itself, and resizes by matrices, which need no sizes but values. Masks are merged
outside, by the script `templates/onnx_panoptic.py.txt`.

Shapes: h x w pixels of the image, H x W of the canvas, Q queries, K classes, S names of the class with the most, P
sentences around a name, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipself_seg.checkpoints.hashes import weights_hash
from clipself_seg.errors import InputError
from clipself_seg.heads.diffusion.source import DiffusionFeatures
from clipself_seg.heads.fusion import fuse_scores
from clipself_seg.heads.panoptic.clip_branches import BackbonePooling, DensePooling
from clipself_seg.heads.panoptic.feature_sources import MEAN_COLOUR, cell_side
from clipself_seg.heads.panoptic.generator import GeneratorScores
from clipself_seg.heads.text_scores import class_logits
from clipself_seg.models import OpenPanoptic
from clipself_seg.prediction.onnx import class_names
from clipself_seg.prediction.onnx import graph as graphs
from clipself_seg.prediction.task_predictors import PanopticPredictor

CUBIC = -0.5  # torch's and Pillow's where they smooth; OpenCV's is -0.75
Sizes = Sequence[Tensor]  # rows and columns, float64 scalars: rounding decides about pixels


class PanopticGraph(nn.Module):
    """An image (1, 3, h, w) of RGB in [0, 255] in; mask logits (Q, H / 4, W / 4) and scores (Q, K + 1) out.

    Where one pass of a ViT gives masks and names, its dense features (E, rows, columns) of the canvas come out, too.

    Attributes:
        gives_features: true if they do.
    """

    around: Tensor

    def __init__(self, model: OpenPanoptic) -> None:
        super().__init__()
        self.model = model
        self.masks = model.masks.require_generator()
        self.gives_features = bool(self.masks.branch_map) and model.clip.visual.plain
        grey = self.masks.canvas.padding
        around = model.clip.mean if grey == MEAN_COLOUR else [grey / 255] * 3
        self.register_buffer("around", torch.tensor(around).view(3, 1, 1))

    def forward(
        self, images: Tensor, seen: Tensor, texts: Tensor, generator_texts: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Masks and scores as `OpenPanoptic.generate` gives them, fused with `OpenPanoptic.clip_scores`.

        Args:
            images: (1, 3, h, w).
            seen: (K,) bool, classes of the training vocabulary.
            texts: (K, S, P, E) for the CLIP branch.
            generator_texts: (K, S, 1, E) for the generator, which reads them as they are; None: those of the branch.
        """
        model, made, divisor = self.model, self.masks, self.masks.canvas.size_divisibility
        texts_KSE = class_names.of_names(texts)
        own_KSE = texts_KSE if generator_texts is None else generator_texts[:, :, 0]
        height, width = images.shape[2:]
        rows, columns = ((side + divisor - 1) // divisor * divisor for side in (height, width))
        padding = (0, columns - width, 0, rows - height)
        pixels = images / 255
        outside = 1 - F.pad(torch.ones_like(pixels[:, :1]), padding)
        maps = made.backbone(F.pad(pixels, padding) + self.around * outside)
        (prediction,) = made.generator(maps)
        own = made.generator.scores(prediction, own_KSE.flatten(0, 1), None)
        own_logits = class_names.of_each_class(own.class_logits, own_KSE).amax(dim=-1)
        if not made.generator.class_agnostic:  # void is one more class
            own = GeneratorScores(own_logits, torch.cat([own_logits, own.void_logits[..., -1:]], 2))
        masks = prediction.mask_logits[0]
        fusion, valid = model.fusion.returned(), None
        clip_logits = torch.zeros_like(own_logits[0])
        if fusion.alpha or fusion.beta or fusion.void_discount:
            image_size, canvas = _scalars(height, width), _scalars(rows, columns)
            pooled = None
            if made.branch_map:
                pooled = maps[made.branch_map]
            elif isinstance(model.branch, BackbonePooling):
                pooled = model.branch.pooled_map(pixels[0], (rows, columns))
            embeddings, cells = self.read(pixels[0], masks, pooled, image_size, canvas)
            scale = model.branch.clip.similarity_scale
            of_names = class_logits(embeddings, texts_KSE.flatten(0, 1), None, scale)
            clip_logits = class_names.of_each_class(of_names, texts_KSE).amax(dim=-1)
            valid = cells.flatten(1).any(dim=1) if model.fusion.valid_mask else None
        scores = fuse_scores(
            own_logits[0],
            clip_logits,
            own.void_prob[0],
            seen,
            fusion.alpha,
            fusion.beta,
            valid,
            fusion.void_discount,
        )
        features = [maps[made.branch_map][0]] if self.gives_features else []
        return masks, scores, *features

    def read(
        self, pixels: Tensor, masks: Tensor, pooled: Tensor | None, image_size: Sizes, canvas: Sizes
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (Q, E) of the masks, and the cells of CLIP that each makes visible, as `ClipBranch.embed`."""
        branch = self.model.branch
        if isinstance(branch, BackbonePooling):
            assert pooled is not None
            grid = (pooled.shape[2], pooled.shape[3])
            if branch.binarise == "centre":
                cells = F.interpolate(masks[None], grid, mode="bilinear")[0] > 0
            else:
                whole = _scalars(1, 1)
                cells = visible_cells(masks, grid, cell_side(branch.clip), whole, canvas)
            return branch.clip.visual.pool_cells(pooled, cells), cells
        assert isinstance(branch, DensePooling)
        side = branch.input_size
        scale = side / torch.maximum(*image_size)
        shown = [(own * scale).round().clamp(min=1) for own in image_size]
        down, right = (_cubic(own, new, side) for own, new in zip(pixels.shape[1:], shown))
        square = (down @ pixels @ right.T).clamp(0, 1) * _inside((side, side), 1, shown)
        covered = image_size if branch.align_masks else canvas
        fractions = [part / all_ * side / new for part, all_, new in zip(covered, canvas, shown)]
        patch = branch.clip.patch_size
        cells = visible_cells(masks, (side // patch, side // patch), patch, fractions, shown)
        return branch.read(branch.clip.normalise(square)[None], cells), cells


def visible_cells(
    masks: Tensor, grid: tuple[int, int], patch: int, fractions: Sizes, shown: Sizes
) -> Tensor:
    """`clip_branches.visible_cells` by "centre_or_any" for sizes that are values."""
    cells = (_sampled(masks, grid, fractions) > 0) & _inside(grid, patch, shown)
    empty = ~cells.flatten(1).any(dim=1) & (masks >= 0).flatten(1).any(dim=1)
    queries = empty.nonzero()[:, 0]
    size = (grid[0] * patch, grid[1] * patch)
    fine = _sampled(masks[queries], size, fractions)
    fine = torch.where(_inside(size, 1, shown), fine, -torch.inf)
    opened = fine.reshape(-1, grid[0], patch, grid[1], patch).amax(dim=(2, 4)) >= 0
    return cells.index_copy(0, queries, opened)


def _scalars(*sides: int) -> Sizes:
    """Sizes as values of the graph."""
    return [torch.full((), side, dtype=torch.float64) for side in sides]


def _inside(size: tuple[int, int], step: int, shown: Sizes) -> Tensor:
    """Mask of the cells of `step` pixels whose centres lie in the part that shows the image, bool (rows, columns)."""
    rows, columns = ((torch.arange(n) + 0.5) * step < end for n, end in zip(size, shown))
    return rows[:, None] & columns


def _sampled(maps: Tensor, size: tuple[int, int], fractions: Sizes) -> Tensor:
    """Bilinear samples (Q, *size) of the top left fractions of maps (Q, m, n); beyond a map its border goes on."""
    down, right = (
        _linear((torch.arange(new) + 0.5) * (part * own / new) - 0.5, own)
        for own, new, part in zip(maps.shape[1:], size, fractions)
    )
    return down @ maps @ right.T


def _linear(places: Tensor, cells: int) -> Tensor:
    """Weights (n, cells) that interpolate linearly at n places."""
    distances = (places.clamp(0, cells - 1)[:, None] - torch.arange(cells)).abs()
    return (1 - distances).clamp(min=0).float()


def _cubic(length: int, new: Tensor, count: int) -> Tensor:
    """Weights (count, length) of a bicubic resize of `length` pixels to `new`, smoothed where it makes them fewer.

    As torch and Pillow compute them; rows from `new` on mean nothing.
    """
    scale = length / new
    wide = scale.clamp(min=1)
    centres = (scale * (torch.arange(count) + 0.5))[:, None]
    first, end = ((centres + side * 2 * wide + 0.5).clamp(min=0).floor() for side in (-1, 1))
    places = torch.arange(length)
    x = ((places + 0.5 - centres) / wide).abs()
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CUBIC
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = torch.where((places >= first) & (places < end), weights, 0.0)
    return (weights / weights.sum(dim=1, keepdim=True).clamp(min=0.1)).float()


def graph_of(predictor: PanopticPredictor, text_tower: bool = False) -> graphs.Export:
    """Makes the graph of a predictor and the files beside it. The export may change the predictor.

    Args:
        predictor: on the CPU, in float32, with its class names unless the text tower is exported.
        text_tower: class names are given to the file later; its text tower is written beside it.

    Raises:
        InputError: masks are given to the model or made by Stable Diffusion, or CLIP reads them by masked attention;
            with `text_tower` there are two of them, or one has a tokenizer of its own.
    """
    model, mapper = predictor.model, predictor.mapper
    generator = model.masks.require_generator()
    if isinstance(generator.backbone, DiffusionFeatures):
        raise InputError(
            "MODEL.MASK_GENERATOR.SOURCE is diffusion, and Stable Diffusion is not exported: take an FC-CLIP, such as "
            "--model fcclip-convnext-large"
        )
    canvas = generator.canvas
    if not isinstance(model.branch, BackbonePooling | DensePooling):
        raise InputError(
            "MODEL.CLIP_BRANCH.KIND masked_attention is not exported: take KIND dense, with the weights of a "
            "distilled CLIP"
        )
    settings, divisor = model.settings, canvas.size_divisibility
    fewest = divisor + 1  # on a canvas of one unit a size might be taken for a constant
    module = PanopticGraph(model)
    features = ("features",) if module.gives_features else ()
    graph = graphs.Graph(
        module,
        {"images": torch.rand(1, 3, 3 * divisor - 7, 4 * divisor - 5) * 255},
        {"images": {2: "H", 3: "W"}},
        ("masks", "scores", *features),
        graphs.smooth_images(
            (4 * divisor, 4 * divisor),
            (2 * divisor + 5, 5 * divisor - 3),
            (5 * divisor, 2 * divisor),
        ),
        align=decided,
    )
    metadata = graphs.metadata_of(predictor) | {
        "preprocessing": f"RGB in [0, 255], {mapper.size_rule()}; H and W of {fewest} at least",
        "results": f"masks (Q, h, w), logits at a quarter of the size of the image, padded at the bottom and right to "
        f"multiples of {divisor}; scores (Q, K + 1) in [0, 1], in the order of names, void last"
        + ("; features (E, h, w), CLIP's dense features of the same pass" if features else ""),
        "things": [] if text_tower else list(model.classes.things),
        "short_side": mapper.min_size,
        "long_side": mapper.max_size,
        "size_divisibility": divisor,
        "object_threshold": settings.object_threshold,
        "overlap_threshold": settings.overlap_threshold,
    }
    export = graphs.Export(graph, metadata, beside={".py": graphs.script("panoptic")})
    if not text_tower:
        rows = model.branch_texts(), generator.texts(model.classes)
        inside = [class_names.by_class(own, model.classes.synonyms)[:, :, None] for own in rows]
        seen = model.classes.seen_on(model.device)
        graph.module = class_names.NamesInside(module, seen, *inside)
        return export
    clip, own_clip = model.branch_clip, generator.bank.clip
    if weights_hash(clip.text_weights) != weights_hash(own_clip.text_weights):
        raise InputError(
            f"masks are found by texts of {own_clip.name} and named by those of another CLIP, {clip.name}, and one "
            "text tower stands beside a file: give the class names now"
        )
    texts = {"texts": class_names.sentences(model.branch_bank.templates)}
    if not generator.generator.in_clip_space:
        texts["generator_texts"] = class_names.sentences(generator.bank.templates)
    # Boxes of segments are found without a difference between seen and unseen classes.
    trained = predictor.trained if predictor.task == "panoptic" else None
    class_names.open_names(export, clip, texts, trained, exact=True)
    return export


def decided(wanted: graphs.Arrays, computed: graphs.Arrays) -> tuple[graphs.Arrays, graphs.Arrays]:
    """Results without queries for which rounding decided about a cell, whether it is attended to or is inside a mask.

    Args:
        wanted: masks and scores, and features as they are.
        computed: the same.

    Returns:
        The others of both; or all, where there are too many such queries.
    """
    alike = np.ones(len(wanted[0]), bool)
    for one, other in zip(wanted[:2], computed[:2]):
        differences = np.abs(one - other).reshape(len(one), -1).max(axis=1)
        alike &= differences <= graphs.TOLERANCE * np.abs(one).max()
    if alike.mean() < 1 - graphs.BY_ROUNDING:
        return wanted, computed
    first, second = ([one[alike] for one in both[:2]] + [*both[2:]] for both in (wanted, computed))
    return first, second
