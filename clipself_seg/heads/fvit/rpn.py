"""The region proposal network of F-ViT: anchors, head, proposals and losses.

Shapes: B images, five levels of s x s cells, 3 anchors a cell, n anchors of an image in all (P2 first).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from clipself_seg.clip.precision import in_own_precision
from clipself_seg.heads.fvit import boxes as box_ops
from clipself_seg.heads.fvit.pyramid import CHANNELS, ConvNorm

RATIOS = (0.5, 1.0, 2.0)
SCALE = 8.0
"""Side of the square anchor in strides."""


class ProposalRule(NamedTuple):
    """The thresholds and limits by which proposals are selected.

    Attributes:
        before: best anchors of each level that are decoded.
        after: proposals of an image.
        iou: overlap above which the worse of two proposals of a level goes.
    """

    before: int = 2000
    after: int = 1000
    iou: float = 0.7


class RPN(nn.Module):
    """Objectness and deltas of every anchor, from one head for all levels, and what follows: proposals and losses."""

    def __init__(
        self,
        strides: Sequence[float],
        rule: ProposalRule,
        *,
        channels: int = CHANNELS,
        norm: bool = False,
        seed: int = 0,
    ) -> None:
        """
        Args:
            strides: pixels between the cells of each level.
            rule: numbers and overlap of proposals, in training too.
            channels: channels of the levels.
            norm: True if the convolutions have batch norms in place of biases (OV-LVIS).
            seed: seed of the random choices of anchors.
        """
        super().__init__()
        self.strides = list(strides)
        self.rule = rule
        self.seed = seed
        self._anchors: tuple[object, list[Tensor]] = (None, [])
        self.rpn_conv = nn.Sequential(
            *(ConvNorm(channels, channels, 3, norm=norm) for _ in range(2))
        )
        self.rpn_cls = nn.Conv2d(channels, len(RATIOS), 1)
        self.rpn_reg = nn.Conv2d(channels, 4 * len(RATIOS), 1)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.01)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (B, 3, s, s) and deltas (B, 12, s, s), anchor by anchor, of each level.

        In training a batch norm sees the levels one after the other, and counts five steps.
        """
        logits, deltas = [], []
        for level in levels:  # one after the other in memory too
            hidden = self.rpn_conv(level)
            logits.append(in_own_precision(self.rpn_cls, hidden))
            deltas.append(in_own_precision(self.rpn_reg, hidden))
        return logits, deltas

    @torch.no_grad()
    def propose(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        index: int,
        image_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Proposals (m, 4) of one image of a batch, the best first, and their scores (m,) in [0, 1]: those of
        `best_boxes` that have an area and survive suppression within their level.

        Args:
            logits: logits (B, 3, s, s) of each level.
            deltas: deltas (B, 12, s, s) of each level.
            index: number of the image in the batch.
            image_size: rows and columns of the image in the square.
        """
        own_logits = [flatten_predictions(x[index : index + 1], 1)[0, :, 0].float() for x in logits]
        own_deltas = [flatten_predictions(x[index : index + 1], 4)[0].float() for x in deltas]
        anchors = self.anchors(logits)
        boxes, scores, levels = best_boxes(own_logits, own_deltas, anchors, image_size, self.rule)
        # Those that are no numbers stay, so that they are seen.
        empty = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
        rows = (~empty).nonzero()[:, 0]  # once: each mask as an index would look for them
        boxes, scores, levels = boxes[rows], scores[rows], levels[rows]
        # torchvision goes through many boxes level by level: best on a CPU, but a GPU would be waited for 17 times.
        within_levels = batched_nms if boxes.device.type == "cpu" else box_ops.suppress
        kept = within_levels(boxes, scores, levels, self.rule.iou)[: self.rule.after]
        return boxes[kept], scores[kept]

    def losses(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], objects: Sequence[box_ops.Objects]
    ) -> dict[str, Tensor]:
        """Objectness and box loss by name, scalars, of logits and deltas as of `propose`."""
        anchors = self.anchors(logits)
        flat_logits = [flatten_predictions(x, 1)[..., 0].float() for x in logits]
        flat_deltas = [flatten_predictions(x, 4).float() for x in deltas]
        targets = self.targets(objects, torch.cat(anchors))
        classification, regression = rpn_losses(flat_logits, flat_deltas, anchors, targets)
        return {"loss_rpn_cls": classification.sum(), "loss_rpn_bbox": regression.sum()}

    def targets(self, objects: Sequence[box_ops.Objects], anchors: Tensor) -> list[RPNTargets]:
        """Anchors of each image that the losses see, out of anchors (n, 4), and the boxes that they should become."""
        assigned = [
            box_ops.match_boxes(of_image.boxes, anchors, box_ops.RPN_RULE) for of_image in objects
        ]
        generators = [
            box_ops.generator_of(self.seed, of_image.draw, "anchors") for of_image in objects
        ]
        sampled = box_ops.sample_boxes(assigned, box_ops.RPN_SAMPLING, generators)
        return [
            RPNTargets(chosen, of_image.boxes[numbers[chosen.positive] - 1])
            for chosen, of_image, numbers in zip(sampled, objects, assigned)
        ]

    def anchors(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Anchors of each level, on the device of the levels; made once for all images of one size."""
        sizes = tuple((level.shape[2], level.shape[3]) for level in levels)
        made_for = (sizes, levels[0].device)
        kept = self._anchors
        if kept[0] != made_for:
            anchors = [a.to(levels[0].device) for a in make_anchors(sizes, self.strides)]
            kept = self._anchors = (made_for, anchors)
        return kept[1]


def make_anchors(sizes: Sequence[tuple[int, int]], strides: Sequence[float]) -> list[Tensor]:
    """Anchors (cells x 3, 4) of each level, row by row, ratios within a cell.

    They equal those of Detectron2's `DefaultAnchorGenerator` with offset 0, which prints a warning of torch's.

    Args:
        sizes: rows and columns of each level.
        strides: pixels between its cells, which need not be integers.
    """
    levels = []
    for (rows, columns), stride in zip(sizes, strides, strict=True):
        ratios = torch.tensor(RATIOS).sqrt()
        height, width = SCALE * stride * ratios, SCALE * stride / ratios
        shapes = torch.stack([-width, -height, width, height], dim=1) / 2
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4) * stride
        levels.append((centres + shapes).reshape(-1, 4))
    return levels


def flatten_predictions(maps: Tensor, length: int) -> Tensor:
    """Head outputs (B, 3 x length, s, s) in the order of the anchors, (B, cells x 3, length)."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, length)


def best_boxes(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    image_size: tuple[int, int],
    rule: ProposalRule,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (n, 4) of the best anchors of each level, their scores (n,) in [0, 1] and levels (n,).

    Only these anchors are decoded; Detectron2 decodes all of them and ranks by logit.

    Args:
        logits: objectness (n_level,) of each level.
        deltas: deltas (n_level, 4) of each level.
        anchors: anchors of each level.
        image_size: rows and columns of the image without padding, to which boxes are clipped.
        rule: numbers and overlap.
    """
    boxes, scores, numbers = [], [], []
    for number, (level, regression, own) in enumerate(zip(logits, deltas, anchors, strict=True)):
        best = level.sigmoid().sort(descending=True, stable=True)
        chosen = best.indices[: rule.before]
        boxes.append(box_ops.decode_boxes(own[chosen], regression[chosen], image_size))
        scores.append(best.values[: rule.before])
        numbers.append(torch.full_like(chosen, number))
    return torch.cat(boxes), torch.cat(scores), torch.cat(numbers)


class RPNTargets(NamedTuple):
    """Targets of the losses for one image.

    Attributes:
        sampled: indices of anchors.
        boxes: boxes (p, 4) of the objects that the positive ones belong to.
    """

    sampled: box_ops.Sampled
    boxes: Tensor


def rpn_losses(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    targets: Sequence[RPNTargets],
) -> tuple[Tensor, Tensor]:
    """Objectness and box loss of each level, (5,) each; their sums are what is minimised.

    Both are divided by the number of sampled anchors, in which an image without positive or negative ones
    counts one of them.

    Args:
        logits: objectness (B, n_level) of each level.
        deltas: deltas (B, n_level, 4) of each level.
        anchors: anchors (n_level, 4) of each level.
        targets: of each image.
    """
    of_level = torch.cat([torch.full((len(a),), i, device=a.device) for i, a in enumerate(anchors)])
    all_logits, all_deltas = torch.cat([*logits], 1).float(), torch.cat([*deltas], 1).float()
    all_anchors = torch.cat([*anchors])
    sums = all_logits.new_zeros(2, len(anchors))
    count = 0
    for own_logits, own_deltas, (sampled, boxes) in zip(all_logits, all_deltas, targets):
        positive, negative = sampled
        count += max(len(positive), 1) + max(len(negative), 1)
        both = torch.cat([positive, negative])
        truth = (torch.arange(len(both), device=both.device) < len(positive)).float()
        entropy = F.binary_cross_entropy_with_logits(own_logits[both], truth, reduction="none")
        wanted = box_ops.encode_boxes(all_anchors[positive], boxes)
        distance = (own_deltas[positive] - wanted).abs().sum(dim=1)
        sums = sums + torch.stack(
            [
                sums.new_zeros(len(anchors)).index_add(0, of_level[both], entropy),
                sums.new_zeros(len(anchors)).index_add(0, of_level[positive], distance),
            ]
        )
    classification, regression = sums / count
    return classification, regression
