"""Plain reference formulation of open-vocabulary detection, in the order of the paper.

Transposed convolutions and lateral ones come one after the other, norms are passes of their own, regions of
CLIP are sampled by RoIAlign, scores are products of powers of probabilities, suppression is a loop over
classes with all of their candidates, and each mask is sampled all over the image.

Shapes: B images, D width of the tower, E embedding, K classes, n boxes, g x g cells of the tower, H W rows
    and columns of the original image. Boxes are XYXY in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, nms, roi_align

from clipself_seg.heads.fvit.boxes import Detected, DetectionRule, decode_boxes
from clipself_seg.heads.fvit.pyramid import ConvNorm, FeaturePyramid, TapResizers
from clipself_seg.heads.fvit.roi_heads import BoxHead, MaskHead
from clipself_seg.heads.fvit.rpn import RPN, ProposalRule, make_anchors


def plain_convs(layers: Iterable[nn.Module], maps: Tensor) -> Tensor:
    """The result of `ConvNorm`s, one after the other: convolution, norm and ReLU in turn."""
    for layer in layers:
        assert isinstance(layer, ConvNorm)
        maps = layer.conv(maps)
        maps = maps if layer.bn is None else layer.bn(maps)
        maps = F.relu(maps) if layer.relu else maps
    return maps


def plain_levels(
    neck: FeaturePyramid, resizers: TapResizers, taps: Sequence[Tensor]
) -> list[Tensor]:
    """P2 to P6 of four taps (B, D, g, g): the resized maps have width D at every stride."""
    laterals = [plain_convs([conv], maps) for conv, maps in zip(neck.lateral_convs, resizers(taps))]
    for index in (2, 1, 0):
        size = laterals[index].shape[-2:]
        above = F.interpolate(laterals[index + 1], size, mode="nearest")
        laterals[index] = laterals[index] + above
    levels = [plain_convs([conv], maps) for conv, maps in zip(neck.fpn_convs, laterals)]
    return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]


def plain_rpn(head: RPN, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Logits (B, 3, s, s) and deltas (B, 12, s, s) of each level."""
    hidden = [plain_convs(head.rpn_conv, level) for level in levels]
    return [head.rpn_cls(maps) for maps in hidden], [head.rpn_reg(maps) for maps in hidden]


def plain_proposals(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    strides: Sequence[float],
    image_size: tuple[int, int],
    rule: ProposalRule,
) -> tuple[Tensor, Tensor]:
    """Proposals (m, 4) of one image and their scores, from anchors that are made anew.

    Args:
        logits: (1, 3, s, s) of each level.
        deltas: (1, 12, s, s) of each level.
        strides: pixels between the cells of each level.
        image_size: rows and columns of the image in the square.
        rule: numbers and overlap.
    """
    anchors = make_anchors([(x.shape[2], x.shape[3]) for x in logits], strides)
    boxes, scores, numbers = [], [], []
    for number, (level, regression) in enumerate(zip(logits, deltas)):
        probs = level[0].permute(1, 2, 0).reshape(-1).float().sigmoid()
        best = probs.sort(descending=True, stable=True).indices[: rule.before]
        own = regression[0].permute(1, 2, 0).reshape(-1, 4).float()[best]
        of_level = anchors[number].to(best.device)[best]
        boxes.append(decode_boxes(of_level, own, image_size))
        scores.append(probs[best])
        numbers.append(torch.full_like(best, number))
    all_boxes, all_scores, of_box = torch.cat(boxes), torch.cat(scores), torch.cat(numbers)
    large = ((all_boxes[:, 2:] - all_boxes[:, :2]) > 0).all(dim=1)
    all_boxes, all_scores, of_box = all_boxes[large], all_scores[large], of_box[large]
    kept = batched_nms(all_boxes, all_scores, of_box, rule.iou)[: rule.after]
    return all_boxes[kept], all_scores[kept]


def plain_pooling(
    levels: Sequence[Tensor], strides: Sequence[float], boxes_n4: Tensor, side: int
) -> Tensor:
    """Features (n, C, side, side) of the boxes of one image, by torchvision's RoIAlign of each level."""
    areas = (boxes_n4[:, 2] - boxes_n4[:, 0]) * (boxes_n4[:, 3] - boxes_n4[:, 1])
    level_n = (areas.sqrt() / 56 + 1e-6).log2().floor().clamp(0, 3)
    pooled = levels[0].new_zeros(len(boxes_n4), levels[0].shape[1], side, side)
    for number, (level, stride) in enumerate(zip(levels[:4], strides)):
        own = level_n == number
        pooled[own] = roi_align(level, [boxes_n4[own]], side, 1 / stride, aligned=True)
    return pooled


def plain_box_head(head: BoxHead, features: Tensor) -> tuple[Tensor, Tensor]:
    """Class embeddings (n, E) and deltas (n, 4) of features (n, C, 7, 7)."""
    hidden = plain_convs(head.shared_convs, features).flatten(1)
    for layer in head.shared_fcs:
        hidden = F.relu(layer(hidden))
    classes = F.relu(head.cls_fcs[0](hidden)).float()
    deltas = head.fc_reg(F.relu(head.reg_fcs[0](hidden))).float()
    return classes / classes.norm(dim=1, keepdim=True).clamp(min=1e-12), deltas


def plain_clip_logits(
    dense: Tensor, boxes_n4: Tensor, stride: float, text: Tensor, temperature: float
) -> Tensor:
    """CLIP's logits (n, K + 1): a 1x1 RoIAlign samples the dense features (E, g, g)."""
    pooled = roi_align(dense[None], [boxes_n4], 1, 1 / stride, aligned=True)[:, :, 0, 0]
    return temperature * (F.normalize(pooled, dim=1) @ text.T)


def plain_scores(
    detector_logits: Tensor, clip_logits: Tensor, seen: Tensor, alpha: float, beta: float
) -> Tensor:
    """Fused scores (n, K + 1), background last, by powers of probabilities."""
    exponents = torch.full_like(clip_logits[0], alpha)
    exponents[:-1][~seen] = beta
    detector, clip = detector_logits.softmax(dim=1), clip_logits.softmax(dim=1)
    return detector ** (1 - exponents) * clip**exponents


def plain_detections(boxes_n4: Tensor, scores_nK: Tensor, rule: DetectionRule) -> Detected:
    """The best detections after suppression of all candidates, class by class."""
    rows, labels = (scores_nK > rule.threshold).nonzero(as_tuple=True)
    scores = scores_nK[rows, labels]
    kept = [torch.zeros_like(rows[:0])]
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        kept.append(own[nms(boxes_n4[rows[own]], scores[own], rule.iou)])
    survivors = torch.cat(kept)
    survivors = survivors[scores[survivors].argsort(descending=True)[: rule.most]]
    return Detected(boxes_n4[rows[survivors]], scores[survivors], labels[survivors])


def plain_mask_probs(head: MaskHead, features: Tensor) -> Tensor:
    """Mask probabilities (n, 28, 28) of features (n, C, 14, 14)."""
    hidden = F.relu(head.upsample(plain_convs(head.convs, features)))
    return head.conv_logits(hidden)[:, 0].float().sigmoid()


def plain_masks(probs_nSS: Tensor, boxes_n4: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Masks (n, H, W) bool, each sampled at every pixel of the image."""
    height, width = image_size
    y_H, x_W = (torch.arange(cells, device=boxes_n4.device) + 0.5 for cells in image_size)
    masks = probs_nSS.new_zeros(len(boxes_n4), height, width, dtype=torch.bool)
    for mask, probs, (x0, y0, x1, y1) in zip(masks, probs_nSS, boxes_n4):
        x = ((x_W - x0) / (x1 - x0) * 2 - 1).expand(height, width)
        y = ((y_H - y0) / (y1 - y0) * 2 - 1)[:, None].expand(height, width)
        grid = torch.stack([x, y], dim=-1)[None]
        read = F.grid_sample(probs[None, None], grid, align_corners=False)
        mask.copy_(read[0, 0] >= 0.5)
    return masks
