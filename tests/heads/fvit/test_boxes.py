"""Which object keeps a box, which boxes are proposed, and which survive: by hand, and beside plain loops."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torchvision.ops import nms

from bench.accelerator import ACCELERATOR, Accelerator, on_host
from clipself_seg.heads.fvit import boxes as rules
from clipself_seg.heads.fvit.boxes import (
    ROI_RULES,
    RPN_RULE,
    DetectionRule,
    MatchRule,
    SamplingRule,
    match_boxes,
    sample_boxes,
    select_detections,
)
from clipself_seg.heads.fvit.rpn import ProposalRule, make_anchors, propose


@pytest.mark.parametrize(
    "objects, boxes, rule, assigned",
    [
        # Both objects overlap the box by 1/2, and it is the best one of each: the last one keeps it.
        ([(0, 0, 10, 5), (0, 5, 10, 10)], [(0, 0, 10, 10)], RPN_RULE, [2]),
        ([(0, 5, 10, 10), (0, 0, 10, 5)], [(0, 0, 10, 10)], RPN_RULE, [2]),
        # The last one keeps it even where it overlaps it less, 0.4 to 0.6, and the box is no one else's best.
        ([(0, 0, 10, 6), (0, 6, 10, 10)], [(0, 0, 10, 10)], RPN_RULE, [2]),
        ([(0, 0, 10, 6), (0, 6, 10, 10)], [(0, 0, 10, 10)], ROI_RULES[True], [1]),
        # Two boxes that are equally good are both an object's.
        ([(0, 0, 10, 10)], [(0, 0, 10, 4), (0, 6, 10, 10)], RPN_RULE, [1, 1]),
        # From the overlap on a box is positive, below the other it is negative, and ignored between them.
        ([(0, 0, 10, 10)], [(0, 0, 10, 5)], MatchRule(0.5, 0.25), [1]),
        ([(0, 0, 10, 10)], [(0, 0, 10, 2.5)], MatchRule(0.5, 0.25), [-1]),
        ([(0, 0, 10, 10)], [(0, 0, 10, 2.4)], MatchRule(0.5, 0.25), [0]),
        # An object's best box has to overlap it by at least the lowest.
        ([(0, 0, 10, 10)], [(0, 0, 10, 2.5)], MatchRule(0.5, 0.5, 0.25), [1]),
        ([(0, 0, 10, 10)], [(0, 0, 10, 2.4)], MatchRule(0.5, 0.5, 0.25), [0]),
        ([], [(0, 0, 10, 10)], RPN_RULE, [0]),
        ([(0, 0, 10, 10)], [], RPN_RULE, []),
    ],
)
def test_which_object_keeps_a_box(objects, boxes, rule, assigned):
    objects_k4, boxes_n4 = (torch.tensor(x).float().reshape(-1, 4) for x in (objects, boxes))
    assert match_boxes(objects_k4, boxes_n4, rule).tolist() == assigned


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


@pytest.mark.parametrize(
    "scores, labels",
    [
        ([[0.25]], []),  # a score at the threshold is no detection
        ([[0.26]], [0]),
        ([[0.9, 0.8], [0.7, 0.1]], [0, 1]),  # classes do not suppress each other
        ([], []),
    ],
)
def test_detections_by_hand(scores, labels):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9.9]])[: len(scores)]
    scores = torch.tensor(scores).reshape(len(boxes), -1 if scores else 3)
    detected = select_detections(boxes, scores, DetectionRule(0.25))
    assert detected.labels.tolist() == labels
    assert detected.boxes.tolist() == [[0, 0, 10, 10]] * len(labels)


@pytest.mark.parametrize("strides", [(4, 8, 16, 32, 64), (3.5, 7, 14, 28, 56)])
def test_anchors_are_detectron2s(strides):
    sizes = [(16, 12), (8, 6), (4, 3), (2, 2), (1, 1)]
    sides, ratios = [[8 * s] for s in strides], [[0.5, 1, 2]]
    stock = DefaultAnchorGenerator(sizes=sides, aspect_ratios=ratios, strides=strides, offset=0.0)
    expected = stock([torch.zeros(1, 1, *size) for size in sizes])
    for own, other in zip(make_anchors(sizes, strides), expected, strict=True):
        assert torch.equal(own, other.tensor)


def test_proposals_stay_in_the_image_and_are_suppressed_within_their_level():
    anchors = [torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 19]]), torch.tensor([[0.0, 0, 20, 20]])]
    deltas = [torch.zeros(2, 4), torch.zeros(1, 4)]
    logits = [torch.tensor([1.0, 2.0]), torch.tensor([0.0])]
    boxes, scores = propose(logits, deltas, anchors, (10, 15), ProposalRule())
    # The two of the first level are one box after clipping; that of the second stays.
    assert boxes.tolist() == [[0, 0, 15, 10]] * 2
    torch.testing.assert_close(scores, torch.tensor([2.0, 0.0]).sigmoid())
    outside = [torch.tensor([[30.0, 30, 50, 50]])]
    boxes, _ = propose([torch.zeros(1)], [torch.zeros(1, 4)], outside, (10, 15), ProposalRule())
    assert len(boxes) == 0


@pytest.mark.cpu
def test_proposals_on_a_gpu_are_those_of_the_cpu():
    anchors = make_anchors([(24, 24), (12, 12)], (4, 8))
    logits = [torch.randn(len(level)) for level in anchors]
    deltas = [torch.randn(len(level), 4) / 4 for level in anchors]
    rule = ProposalRule(before=1500, after=400)
    expected = propose(logits, deltas, anchors, (80, 96), rule)
    # torchvision loops over levels from 1000 on.
    assert len(expected[0]) > 100 and sum(map(len, anchors)) > 1000
    with Accelerator():
        given = [[x.to(ACCELERATOR) for x in part] for part in (logits, deltas, anchors)]
        boxes, scores = propose(*given, (80, 96), rule)
    assert torch.equal(on_host(boxes), expected[0]) and torch.equal(on_host(scores), expected[1])
