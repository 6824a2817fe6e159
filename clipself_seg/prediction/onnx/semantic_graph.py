"""Semantic segmentation as one file of ONNX: CAT-Seg, or any CLIP without training.

The graph scores the pixels of an image or of a window. The windows of an image are cut and averaged by
``templates/onnx_semantic.py.txt``, which is written beside it.

Shapes: B images, K classes, P prompts of a class, N names of all classes, E embedding, H x W pixels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.templates import TEMPLATES
from clipself_seg.errors import InputError
from clipself_seg.heads.text_scores import class_probabilities
from clipself_seg.models import CATSeg, ZeroShotSegmenter
from clipself_seg.prediction.onnx.graph import Export, Graph, metadata_of, script
from clipself_seg.prediction.onnx.towers import text_files, text_graph
from clipself_seg.prediction.task_predictors import SemanticPredictor

PREPROCESSING = (
    "RGB, 0 to 255, upright by EXIF, of this size: {rule} (Pillow's bilinear). Mean, deviation and padding are "
    "in the graph. Windows of `window` pixels, `stride` pixels apart, are scored and averaged (0: the whole image at "
    "once); on a canvas, to which the image is stretched, their mean is averaged with the whole image's scores. Scores "
    "are resized bilinearly to the image, and the highest is the class."
)
TRACED = (43, 57)  # cells of the traced image: odd numbers, which torch takes for no constants
TEXTS = 3  # class names of the traced graph


class ZeroShotGraph(nn.Module):
    """Computes probabilities (B, K, H, W) of images (B, 3, H, W) of RGB in [0, 255]."""

    text_NE: Tensor | None
    members_KS: Tensor | None

    def __init__(self, model: ZeroShotSegmenter, text_tower: bool) -> None:
        """
        Args:
            model: the model, with its classes unless they are given later.
            text_tower: the embeddings (K, P, E) of class names are an input; else they are inside.
        """
        super().__init__()
        self.clip = model.clip
        self.scale = model.scale
        text_NE, members_KS = (None, None) if text_tower else model._texts(model.classes)
        self.register_buffer("text_NE", text_NE)
        self.register_buffer("members_KS", members_KS)

    def forward(self, images: Tensor, texts: Tensor | None = None) -> Tensor:
        """Scores of one window, computed as in `ZeroShotSegmenter`."""
        if texts is not None:
            text_NE = F.normalize(texts.mean(dim=1), dim=-1)
            members_KS = torch.arange(texts.shape[0])[:, None]
        else:
            assert self.text_NE is not None and self.members_KS is not None
            text_NE, members_KS = self.text_NE, self.members_KS
        patch = self.clip.patch_size
        pixels = padded(self.clip.normalise(images / 255), patch)
        dense_EBhw = self.clip.dense(pixels).transpose(0, 1)
        cells_KBhw = class_probabilities(dense_EBhw, text_NE, members_KS, self.scale)
        size = (cells_KBhw.shape[2] * patch, cells_KBhw.shape[3] * patch)
        scores = bilinear(cells_KBhw.transpose(0, 1), size)
        return scores[..., : images.shape[2], : images.shape[3]]


class CATSegGraph(nn.Module):
    """Computes probabilities (1, K, H, W) of an image (1, 3, H, W) of RGB in [0, 255].

    Without sliding windows, probabilities are (1, K, 4 h, 4 w), as CAT-Seg takes their sigmoid before it resizes them.
    """

    text_KPE: Tensor | None

    def __init__(self, model: CATSeg, text_tower: bool) -> None:
        """
        Args:
            model, text_tower: as for `ZeroShotGraph`.
        """
        super().__init__()
        self.model = model
        # In groups, which fit a CPU's cache, each group of classes would be traced by itself.
        model.aggregator.classes_at_once = 0
        model.aggregator.checkpointing = False  # whose second pass is no part of a graph
        self.register_buffer(
            "text_KPE",
            None if text_tower else model.texts.embed(model.names, model.classes.examples),
        )

    def forward(self, images: Tensor, texts: Tensor | None = None) -> Tensor:
        """Scores of one window, or of a whole image, computed as in `CATSeg`."""
        model = self.model
        text_KPE = self.text_KPE if texts is None else texts
        assert text_KPE is not None
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
        module, count, templates = ZeroShotGraph(model, text_tower), 2, model.bank.templates
        side, stride, canvas, most = model.windows.size, model.windows.stride, 0, 0
    else:
        assert isinstance(model, CATSeg)
        module, count, templates = CATSegGraph(model, text_tower), 1, model.texts.templates
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
    further, beside = dict[str, Graph](), {".py": script("semantic")}
    if count > 1:
        sizes["images"][0] = "B"
    if text_tower:
        further["_text.onnx"] = text_graph(model.clip)
        beside |= text_files(model.clip)
        metadata |= {
            "templates": TEMPLATES[templates],
            "context_length": model.clip.context_length,
            "most_words": most - 1 if most else None,
        }
        inputs["texts"] = torch.randn(TEXTS, len(TEMPLATES[templates]), model.clip.embed_dim)
        sizes["texts"] = {0: "K"}
    graph = Graph(module, inputs, sizes, ("scores",), _checks(model.clip.image_size, inputs))
    return Export(graph, metadata, further, beside)


def _checks(side: int, inputs: dict[str, Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Images and texts of other numbers and sizes than the traced ones: square, wide, and of less than a cell."""
    for count, rows, columns, classes in (
        (1, side, side, 2),
        (len(inputs["images"]), side // 2, side + 9, 5),
        (1, 5, 7, 1),
    ):
        images = torch.rand(count, 3, rows, columns) * 255
        given = [torch.randn(classes, *texts.shape[1:]) for texts in [*inputs.values()][1:]]
        yield images, *given
