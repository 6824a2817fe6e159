"""Anchors and proposals by hand and beside Detectron2's."""

from __future__ import annotations

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from bench.accelerator import ACCELERATOR, Accelerator, on_host
from clipself_seg.heads.fvit.rpn import ProposalRule, make_anchors, propose


def test_anchors_are_detectron2s_for_whole_and_broken_strides():
    for strides in ((4, 8, 16, 32, 64), (3.5, 7, 14, 28, 56)):
        sizes = [(16, 12), (8, 6), (4, 3), (2, 2), (1, 1)]
        stock = DefaultAnchorGenerator(
            sizes=[[8 * s] for s in strides],
            aspect_ratios=[[0.5, 1, 2]],
            strides=strides,
            offset=0.0,
        )
        expected = stock([torch.zeros(1, 1, *size) for size in sizes])
        for own, other in zip(make_anchors(sizes, strides), expected):
            torch.testing.assert_close(own, other.tensor, rtol=0, atol=1e-4)


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


def test_proposals_on_a_gpu_are_those_of_the_cpu():
    anchors = make_anchors([(24, 24), (12, 12)], (4, 8))
    logits = [torch.randn(len(level)) for level in anchors]
    deltas = [torch.randn(len(level), 4) / 4 for level in anchors]
    rule = ProposalRule(before=1500, after=400)
    expected = propose(logits, deltas, anchors, (80, 96), rule)
    assert (
        len(expected[0]) > 100 and sum(map(len, anchors)) > 1000
    )  # torchvision's loop over levels
    with Accelerator():
        given = [[x.to(ACCELERATOR) for x in part] for part in (logits, deltas, anchors)]
        boxes, scores = propose(*given, (80, 96), rule)
    assert torch.equal(on_host(boxes), expected[0]) and torch.equal(on_host(scores), expected[1])
