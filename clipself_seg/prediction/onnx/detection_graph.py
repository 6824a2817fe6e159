"""Detection as one file of ONNX: F-ViT from an image to boxes, scores and classes, with suppression inside.

The number of detections, at the end, is the only size in the graph that depends on values. Before that the number of
proposals is fixed, and those that suppression removes get the score 0. Each box is pooled on all levels of the pyramid;
on levels that it does not belong to, a box outside of the image takes its place, for which pooling gives 0. Every
pooled box has an area, because OpenVINO takes no samples in a box without one and then divides by their number.

Shapes: h x w pixels of the image, n proposals, m detections, K classes, S names of the class with the most, P sentences
around a name, E embedding. Boxes are XYXY in pixels of the image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from clipself_seg.clip.tower import DENSE
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.heads.fusion import fuse_detections
from clipself_seg.heads.fvit.boxes import decode_boxes
from clipself_seg.heads.fvit.roi_heads import DELTA_WEIGHTS, LEVELS, MASK_SIDE, SIDE, pyramid_levels
from clipself_seg.heads.fvit.rpn import flatten_predictions
from clipself_seg.models import FViT
from clipself_seg.models.fvit.fvit import BACKGROUND
from clipself_seg.prediction.onnx import class_names
from clipself_seg.prediction.onnx import graph as graphs
from clipself_seg.prediction.task_predictors import DetectionPredictor

ENDLESS = (math.inf, math.inf)  # size of an image, to which boxes are not clipped
NEAR = 0.05  # distance of a pair of detections: of boxes in sides of the square, of scores


@torch.library.custom_op("clipself_seg::survivors", mutates_args=())
def survivors(boxes: Tensor, scores: Tensor, iou: float, threshold: float, most: int) -> Tensor:
    """Mask of the boxes that non-maximum suppression keeps in each class, bool (K, n).

    Args:
        boxes: (n, 4), one for all classes.
        scores: (K, n).
        iou: overlap above which the worse of two boxes of a class goes.
        threshold: a score has to be above it.
        most: largest number of survivors of a class.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for own, row in zip(scores, kept):
        candidates = (own > threshold).nonzero()[:, 0]
        row[candidates[nms(boxes[candidates], own[candidates], iou)[:most]]] = True
    return kept


@survivors.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, threshold: float, most: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def translations() -> dict[Any, Any]:
    """Translates `survivors` into ONNX's suppression, and marks its list of (image, class, box) in a table."""
    import onnxscript

    op: Any = onnxscript.opset18

    def suppression(boxes: Any, scores: Any, iou: float, threshold: float, most: int) -> Any:
        limits = [most], [iou], [threshold]
        chosen = op.NonMaxSuppression(op.Unsqueeze(boxes, [0]), op.Unsqueeze(scores, [0]), *limits)
        places = op.Slice(chosen, [1], [3], [1])
        marks = op.Expand(op.Constant(value_float=1.0), op.Shape(places, end=1))
        table = op.ScatterND(op.ConstantOfShape(op.Shape(scores)), places, marks)
        return op.Greater(table, op.Constant(value_float=0.5))

    return {torch.ops.clipself_seg.survivors.default: suppression}


class DetectionGraph(nn.Module):
    """Finds boxes (m, 4), scores (m,) and classes (m,) in an image (1, 3, h, w) of RGB in [0, 255], the best first.

    h and w are at most `FViT.side`. A model with masks gives masks (m, 28, 28) in [0, 1], too, each laid over its box.
    """

    background: Tensor

    def __init__(self, model: FViT) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("background", model.bank.embed_names(((BACKGROUND,),)))
        with torch.no_grad():
            levels, _ = model.features(torch.zeros(1, 3, model.side, model.side), dense=False)
        self.anchors = nn.ParameterList(model.rpn_head.anchors(levels))

    def forward(self, images: Tensor, seen: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
        """Detections of one image, computed as in `FViT`.

        Args:
            images: (1, 3, h, w).
            seen: (K,) bool, classes of the training vocabulary.
            texts: (K, S, P, E).
        """
        model, heads = self.model, self.model.roi_head
        text = torch.cat([class_names.of_classes(class_names.of_names(texts)), self.background])
        height, width = images.shape[2:]
        pixels = (images - model.pixel_mean) / model.pixel_std
        square = F.pad(pixels, (0, model.side - width, 0, model.side - height))
        maps = model.clip.features(square, [*model.taps, DENSE])
        levels = model.neck([maps[name] for name in model.taps], model.backbone)
        limits = torch.stack(
            [torch.full((), side, dtype=torch.float32) for side in (width, height)]
        )
        proposals, survived = self.propose(levels, limits.repeat(2))
        embeddings, deltas = heads.bbox_head(self.pool(levels, proposals, SIDE))
        detector = heads.bbox_head.logits(embeddings, text, heads.settings.temperature)
        clip_logits = heads.clip_logits(F.normalize(maps[DENSE][0], dim=0), proposals, text)
        exponents = heads.settings.alpha, heads.settings.beta
        scores = fuse_detections(detector, clip_logits, seen, *exponents)[:, :-1]
        boxes = decode_boxes(proposals, deltas, ENDLESS, DELTA_WEIGHTS)
        boxes = torch.minimum(boxes, limits.repeat(2))
        return self.select(levels, boxes, torch.where(survived[:, None], scores, 0.0))

    def propose(self, levels: Sequence[Tensor], limits: Tensor) -> tuple[Tensor, Tensor]:
        """Proposals (n, 4), the best first, as `RPN.propose`, and which of them are real, (n,) bool."""
        rule = self.model.rpn_head.rule
        boxes, scores = [], []
        for logits, deltas, anchors in zip(*self.model.rpn_head(levels), self.anchors):
            level = flatten_predictions(logits, 1)[0, :, 0].sigmoid()
            best = level.topk(min(rule.before, len(level)))
            changes = flatten_predictions(deltas, 4)[0][best.indices]
            own = torch.minimum(decode_boxes(anchors[best.indices], changes, ENDLESS), limits)
            (kept,) = survivors(own, best.values[None], rule.iou, -1.0, len(own))
            large = (own[:, 2:] > own[:, :2]).all(dim=1)
            boxes.append(own)
            scores.append(torch.where(kept & large, best.values, -1.0))
        together = torch.cat(scores)
        best = together.topk(min(rule.after, len(together)))
        return torch.cat(boxes)[best.indices], best.values >= 0

    def pool(self, levels: Sequence[Tensor], boxes: Tensor, side: int) -> Tensor:
        """Boxes of an image, pooled as in `pool_boxes`: sums over the levels, of which all but a box's own give 0."""
        numbers = pyramid_levels(boxes)
        strides = self.model.roi_head.strides
        pooled = []
        for number, (level, stride) in enumerate(zip(levels[:LEVELS], strides)):
            elsewhere = torch.tensor([-4.0, -4.0, -3.0, -3.0]) * stride
            own = torch.where((numbers == number)[:, None], boxes, elsewhere)
            numbered = F.pad(own, (1, 0))  # image 0
            pooled.append(roi_align(level, numbered, side, 1 / stride, 0, aligned=True))
        return torch.stack(pooled).sum(dim=0)

    def select(self, levels: Sequence[Tensor], boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        """The best detections, as `select_detections`, with masks where there are any."""
        rule, mask_head = self.model.roi_head.settings.rule, self.model.roi_head.mask_head
        kept = survivors(boxes, scores.T, rule.iou, rule.threshold, rule.most).T
        flat = torch.where(kept, scores, 0.0).flatten()
        # As many as are asked for, whatever the number of classes is.
        best = F.pad(flat, (0, max(0, rule.most - len(boxes)))).topk(rule.most)
        above = (best.values > rule.threshold).nonzero()[:, 0]
        rows = (best.indices // scores.shape[1]).clamp(max=len(boxes) - 1)
        classes = best.indices - rows * scores.shape[1]
        outputs = [boxes[rows], best.values, classes]
        if mask_head is not None:
            features = self.pool(levels, boxes[rows], MASK_SIDE)
            outputs.append(mask_head._logits(mask_head.convs(features)).sigmoid())
        return tuple(output[above] for output in outputs)


def graph_of(predictor: DetectionPredictor, text_tower: bool = False) -> graphs.Export:
    """Makes the graph of a predictor and the files beside it. The export may change the predictor.

    Args:
        predictor: on the CPU, in float32, with its class names unless the text tower is exported.
        text_tower: class names are given to the file later; its text tower is written beside it.

    Raises:
        InputError: the text tower is asked for, and has a tokenizer of its own.
    """
    model, side = predictor.model, predictor.model.side
    graph = graphs.Graph(
        DetectionGraph(model),
        {"images": torch.rand(1, 3, side - 1, side // 2) * 255},
        {"images": {2: "H", 3: "W"}},
        ("boxes", "scores", "classes", "masks")[: 3 + model.has_masks],
        graphs.smooth_images((side, side), (side // 2, side), (side, side // 3)),
        translations(),
        functools.partial(paired, side=side),
    )
    metadata = graphs.metadata_of(predictor) | {
        "preprocessing": f"RGB in [0, 255], {predictor.mapper.size_rule()}; H and W of at most {side}",
        "results": "boxes (n, 4), x0, y0, x1, y1 in pixels of the resized image, after suppression, the best first; "
        "scores (n,) in [0, 1]; classes (n,), positions in names; masks (n, 28, 28) in [0, 1], each laid over its box",
        "side": side,
        "resize": predictor.mapper.resize,
        "lowest_score": model.roi_head.settings.rule.threshold,
    }
    export = graphs.Export(graph, metadata, beside={".py": graphs.script("detection")})
    if text_tower:
        texts = {"texts": class_names.sentences(model.bank.templates)}
        trained = predictor.trained
        if trained is None and model.trained_names:
            trained = Vocabulary.of(model.trained_names, repeats=True)
        class_names.open_names(export, model.clip, texts, trained, exact=False)
    else:
        texts_KE = model.bank.embed_names(model.classes.names)
        seen = model.classes.seen_on(model.device)
        graph.module = class_names.NamesInside(graph.module, seen, texts_KE[:, None, None])
    return export


def paired(
    wanted: graphs.Arrays, computed: graphs.Arrays, side: int
) -> tuple[graphs.Arrays, graphs.Arrays]:
    """Results of both in one order: each wanted detection and the nearest one of its class.

    Where scores are equal but for rounding, it decides which detection comes first, or suppresses the other.

    Args:
        wanted: boxes, scores and classes, and what goes with them.
        computed: the same.
        side: of the square, in pixels.

    Returns:
        The pairs; or all as they are, where too many have no partner.
    """
    distance = np.abs(wanted[0][:, None] - computed[0]).max(axis=-1, initial=0) / side
    distance = np.maximum(distance, np.abs(wanted[1][:, None] - computed[1]))
    distance[wanted[2][:, None] != computed[2]] = np.inf
    scores = np.concatenate([wanted[1], computed[1]])
    limit = scores.min(initial=np.inf) + graphs.TOLERANCE * scores.max(initial=0)
    for axis, own in enumerate((computed[1], wanted[1])):
        alone = (distance.min(axis=axis, initial=np.inf) >= NEAR) & (own > limit)
        if alone.sum() > graphs.BY_ROUNDING * len(own):
            return wanted, computed
    near = np.flatnonzero(distance.min(axis=1, initial=np.inf) < NEAR)
    partners = [int(row.argmin()) for row in distance[near]]
    return [one[near] for one in wanted], [other[partners] for other in computed]
