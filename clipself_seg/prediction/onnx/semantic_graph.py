"""Semantic segmentation as one file of ONNX: CAT-Seg, or any CLIP without training.

The graph scores the pixels of an image or of a window. The windows of an image are cut and averaged by
``templates/onnx_semantic.py.txt``, which is written beside it.

Shapes: B images, K classes, S names of the class with the most, P sentences around a name, N = K * S, E embedding, H x
W pixels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.errors import InputError
from clipself_seg.heads.text_scores import cosine_cost
from clipself_seg.models import CATSeg, ZeroShotSegmenter
from clipself_seg.prediction.onnx import class_names
from clipself_seg.prediction.onnx.graph import Export, Graph, metadata_of, script
from clipself_seg.prediction.task_predictors import SemanticPredictor

PREPROCESSING = (
    "RGB, 0 to 255, upright by EXIF, of this size: {rule} (Pillow's bilinear). Mean, deviation and padding are "
    "in the graph. Windows of `window` pixels, `stride` pixels apart, are scored and averaged (0: the whole image at "
    "once); on a canvas, to which the image is stretched, their mean is averaged with the whole image's scores. Scores "
    "are resized bilinearly to the image, and the highest is the class."
)
TRACED = (43, 57)  # cells of the traced image: odd numbers, which torch takes for no constants


class ZeroShotGraph(nn.Module):
    """Computes probabilities (B, K, H, W) of images (B, 3, H, W) of RGB in [0, 255], and texts (K, S, P, E)."""

    def __init__(self, model: ZeroShotSegmenter) -> None:
        super().__init__()
        self.clip = model.clip
        self.scale = model.scale
        self.mean = model.synonyms == "mean"

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scores of one window, computed as in `ZeroShotSegmenter`."""
        texts_KSE = class_names.of_names(texts)
        if self.mean:
            texts_KSE = class_names.of_classes(texts_KSE)[:, None]
        patch = self.clip.patch_size
        pixels = padded(self.clip.normalise(images / 255), patch)
        dense_EBhw = self.clip.dense(pixels).transpose(0, 1)
        cosines_NBhw = cosine_cost(dense_EBhw, texts_KSE.flatten(0, 1)[:, None])[0]
        # As `class_probabilities`: of each class the best probability among all names that there are.
        logits_BhwN = self.scale * cosines_NBhw.movedim(0, 3)
        logits_BhwKS = class_names.of_each_class(logits_BhwN, texts_KSE)
        cells_BKhw = logits_BhwKS.flatten(3).softmax(3).view_as(logits_BhwKS).amax(4).movedim(3, 1)
        size = (cells_BKhw.shape[2] * patch, cells_BKhw.shape[3] * patch)
        scores = bilinear(cells_BKhw, size)
        return scores[..., : images.shape[2], : images.shape[3]]


class CATSegGraph(nn.Module):
    """Computes probabilities (1, K, H, W) of an image (1, 3, H, W) of RGB in [0, 255], and texts (K, S, P, E).

    Without sliding windows, probabilities are (1, K, 4 h, 4 w), as CAT-Seg takes their sigmoid before it resizes them.
    """

    def __init__(self, model: CATSeg) -> None:
        super().__init__()
        self.model = model
        # In groups, which fit a CPU's cache, each group of classes would be traced by itself.
        model.aggregator.classes_at_once = 0
        model.aggregator.checkpointing = False  # whose second pass is no part of a graph

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scores of one window, or of a whole image, computed as in `CATSeg`."""
        model, text_KPE = self.model, class_names.of_classes(texts)
        of_clip, of_backbone = model._inputs(images)
        if not model.evaluation.sliding:
            divisor = max(1, model.evaluation.size_divisibility)
            of_clip, of_backbone = padded(of_clip, divisor), padded(of_backbone, divisor)
        square = bilinear(of_clip, (model.clip_size, model.clip_size))
        features = model.clip.features(square, ("dense", *model.guidance_blocks))
        if model.backbone is None:
            of_backbone = square
        else:
            of_backbone = bilinear(of_backbone, model._backbone_size)
        guidance = model._guidance(of_backbone, features)
        (logits,) = model.aggregator(features["dense"], guidance, text_KPE)
        logits_TSS = logits.all_classes(text_KPE.shape[0])[None]
        size = (images.shape[2], images.shape[3])
        if model.evaluation.sliding:
            return bilinear(logits_TSS, size).sigmoid()
        return logits_TSS[..., : size[0], : size[1]].sigmoid()


def padded(images: Tensor, patch: int) -> Tensor:
    """Images (B, 3, H, W), padded with 0 below and on the right to multiples of the patch.

    H and W are symbols while the graph is traced, so that nothing may depend on whether they are multiples already.
    """
    height, width = ((side + patch - 1) // patch * patch for side in images.shape[2:])
    return F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))


def bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes maps like `windows.resize`, also maps that have the size already: sizes are symbols here."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def graph_of(predictor: SemanticPredictor, text_tower: bool = False) -> Export:
    """Makes the graph of a predictor and the files beside it. The export may change the predictor.

    Args:
        predictor: on the CPU, in float32, with its class names unless the text tower is exported.
        text_tower: class names are given to the file later; its text tower is written beside it.

    Raises:
        InputError: there is a background, or the text tower has a tokenizer of its own.
    """
    if predictor.given and predictor.given.background is not None:
        raise InputError(
            "a background is not exported: set the class names without it, and compare scores with a threshold"
        )
    model, mapper = predictor.model, predictor.mapper
    module: nn.Module
    if isinstance(model, ZeroShotSegmenter):
        module, count = ZeroShotGraph(model), 2
        sentences = class_names.sentences(model.bank.templates)
        side, stride, canvas, most = model.windows.size, model.windows.stride, 0, 0
    else:
        assert isinstance(model, CATSeg)
        module, count = CATSegGraph(model), 1
        sentences = class_names.sentences(model.texts.templates, clean=False)
        layout = model.layout
        side = layout.size if model.evaluation.sliding else 0
        stride, canvas, most = layout.stride, layout.canvas, model.aggregator.sizes.pad_len
    metadata = metadata_of(predictor) | {
        "preprocessing": PREPROCESSING.format(rule=mapper.size_rule()),
        "short_side": mapper.min_size,
        "long_side": mapper.max_size,
        "window": side,
        "stride": stride,
        "canvas": canvas if side else 0,
    }
    # Half a cell more than whole cells: with whole cells the graph would lack the padding.
    unit = max(model.clip.patch_size, 1 if count > 1 else model.evaluation.size_divisibility)
    inputs = {"images": torch.rand(count, 3, *(unit * side + unit // 2 for side in TRACED))}
    sizes = {"images": {2: "H", 3: "W"}}
    if count > 1:
        sizes["images"][0] = "B"
    graph = Graph(module, inputs, sizes, ("scores",), _checks(model.clip.image_size, count))
    export = Export(graph, metadata, beside={".py": script("semantic")})
    if text_tower:
        metadata["most_words"] = most - 1 if most else None
        class_names.open_names(export, model.clip, {"texts": sentences})
    elif isinstance(model, ZeroShotSegmenter):
        rows, members_KS = model._texts(model.classes)
        counts = [1] * len(members_KS) if model.synonyms == "mean" else model.classes.synonyms
        graph.module = class_names.NamesInside(
            module, class_names.by_class(rows, counts)[:, :, None]
        )
    else:
        assert isinstance(model, CATSeg)
        texts_KPE = model.texts.embed(model.names, model.classes.examples)
        graph.module = class_names.NamesInside(module, texts_KPE[:, None])
    return export


def _checks(side: int, count: int) -> Iterator[tuple[Tensor]]:
    """Images of other numbers and sizes than the traced ones: square, wide, and of less than a cell."""
    for size in ((1, 3, side, side), (count, 3, side // 2, side + 9), (1, 3, 5, 7)):
        yield (torch.rand(size) * 255,)
