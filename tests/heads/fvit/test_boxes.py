"""Which boxes are sampled and proposed, and which survive: beside plain loops, Detectron2 and another device."""

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torchvision.ops import nms

from bench.accelerator import ACCELERATOR, Accelerator, on_host
from clipself_seg.heads.fvit import boxes as rules
from clipself_seg.heads.fvit.boxes import (
    DetectionRule,
    SamplingRule,
    sample_boxes,
    select_detections,
)
from clipself_seg.heads.fvit.rpn import RPN, ProposalRule, make_anchors


def test_samples_are_random_ascending_and_filled_up_with_negatives():
    assigned = torch.tensor([0, 1, -1, 2, 0, 3, 0, 0, 1, 0])
    generator = torch.Generator().manual_seed(0)
    rule = SamplingRule(6, 0.5)
    draws = [sample_boxes([assigned], rule, [generator])[0] for _ in range(20)]
    for positive, negative in draws:
        assert len(positive) == len(negative) == 3
        assert (assigned[positive] > 0).all() and (assigned[negative] == 0).all()
        assert (positive.diff() > 0).all() and (negative.diff() > 0).all()
    assert len({tuple(positive.tolist()) for positive, _ in draws}) == 4
    ((positive, negative),) = sample_boxes([assigned[:5]], SamplingRule(6, 0.5), [generator])
    assert positive.tolist() == [1, 3] and negative.tolist() == [0, 4]


def plain(boxes, scores, rule):
    """Class by class, then the best of all."""
    kept = []
    for label in range(scores.shape[1]):
        rows = (scores[:, label] > rule.threshold).nonzero()[:, 0]
        own = scores[rows, label]
        rows = rows[nms(boxes[rows], own, rule.iou)]
        kept += [(float(scores[row, label]), label, int(row)) for row in rows]
    return sorted(kept, reverse=True)[: rule.most]


@pytest.mark.parametrize("first", [4096, 300, 16])  # one look, and several
@pytest.mark.parametrize("rule", [DetectionRule(0.5, 0.4, 50), DetectionRule(0.1, 0.5, 500)])
def test_suppression_of_the_best_candidates_gives_what_that_of_all_gives(monkeypatch, first, rule):
    corner = torch.rand(80, 2) * 100
    boxes = torch.cat([corner, corner + torch.rand(80, 2) * 60 + 1], 1)
    scores = torch.rand(80, 9)
    monkeypatch.setattr(rules, "FIRST", first)
    own = select_detections(boxes, scores, rule)
    wanted_scores, labels, rows = zip(*plain(boxes, scores, rule))
    assert own.labels.tolist() == list(labels)
    assert torch.equal(own.scores, torch.tensor(wanted_scores))
    assert torch.equal(own.boxes, boxes[list(rows)])


@pytest.mark.parametrize("strides", [(4, 8, 16, 32, 64), (3.5, 7, 14, 28, 56)])
def test_anchors_are_detectron2s(strides):
    sizes = [(16, 12), (8, 6), (4, 3), (2, 2), (1, 1)]
    sides, ratios = [[8 * s] for s in strides], [[0.5, 1, 2]]
    stock = DefaultAnchorGenerator(sizes=sides, aspect_ratios=ratios, strides=strides, offset=0.0)
    expected = stock([torch.zeros(1, 1, *size) for size in sizes])
    for own, other in zip(make_anchors(sizes, strides), expected, strict=True):
        assert torch.equal(own, other.tensor)


@pytest.mark.cpu
def test_proposals_on_a_gpu_are_those_of_the_cpu():
    rpn = RPN((4, 8), ProposalRule(before=1500, after=400), channels=8)
    sides = (24, 12)
    logits = [torch.randn(1, 3, side, side) for side in sides]
    deltas = [torch.randn(1, 12, side, side) / 4 for side in sides]
    expected = rpn.propose(logits, deltas, 0, (80, 96))
    # torchvision loops over levels from 1000 on.
    assert len(expected[0]) > 100 and 3 * sum(side**2 for side in sides) > 1000
    with Accelerator():
        given = [[x.to(ACCELERATOR) for x in part] for part in (logits, deltas)]
        boxes, scores = rpn.propose(*given, 0, (80, 96))
    assert torch.equal(on_host(boxes), expected[0]) and torch.equal(on_host(scores), expected[1])
