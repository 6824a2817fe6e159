"""Suppression of the best candidates alone gives what suppression of all of them gives."""

from __future__ import annotations

import torch
from torchvision.ops import nms

from clipself_seg.heads.fvit import detections
from clipself_seg.heads.fvit.detections import DetectionRule, select_detections


def plain(boxes, scores, rule):
    """Class by class, then the best of all."""
    kept = []
    for label in range(scores.shape[1]):
        rows = (scores[:, label] > rule.threshold).nonzero()[:, 0]
        own = scores[rows, label]
        rows = rows[nms(boxes[rows], own, rule.iou)]
        kept += [(float(scores[row, label]), label, int(row)) for row in rows]
    return sorted(kept, reverse=True)[: rule.most]


def random_case(boxes=80, classes=9):
    corner = torch.rand(boxes, 2) * 100
    return torch.cat([corner, corner + torch.rand(boxes, 2) * 60 + 1], 1), torch.rand(
        boxes, classes
    )


def same(boxes, scores, rule):
    own = select_detections(boxes, scores, rule)
    wanted = plain(boxes, scores, rule)
    assert own.rows.tolist() == [row for _, _, row in wanted]
    assert own.labels.tolist() == [label for _, label, _ in wanted]
    torch.testing.assert_close(own.scores, torch.tensor([score for score, _, _ in wanted]))
    assert torch.equal(own.boxes, boxes[own.rows])


def test_few_and_many_candidates(monkeypatch):
    boxes, scores = random_case()
    for first in (4096, 300, 16):  # one look, and several
        monkeypatch.setattr(detections, "FIRST", first)
        for rule in (DetectionRule(0.5, 0.4, 50), DetectionRule(0.1, 0.5, 500)):
            same(boxes, scores, rule)


def test_a_score_at_the_threshold_is_no_detection():
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    assert len(select_detections(boxes, torch.tensor([[0.25]]), DetectionRule(0.25)).scores) == 0
    assert len(select_detections(boxes, torch.tensor([[0.26]]), DetectionRule(0.25)).scores) == 1


def test_no_boxes():
    detected = select_detections(torch.zeros(0, 4), torch.zeros(0, 3), DetectionRule())
    assert [len(part) for part in detected] == [0, 0, 0, 0]


def test_classes_do_not_suppress_each_other():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9.9]])
    detected = select_detections(boxes, torch.tensor([[0.9, 0.8], [0.7, 0.1]]), DetectionRule())
    assert detected.labels.tolist() == [0, 1] and detected.rows.tolist() == [0, 0]
