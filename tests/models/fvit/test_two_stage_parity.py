"""Assignment, sampling, losses and gradients of a training step against the official detector."""

from __future__ import annotations

import json
import math

import pytest
import torch

from clipself_seg.clip import load_clip
from clipself_seg.heads.fvit.matching import RPN_RULE, MatchRule, Sampled, match_boxes
from clipself_seg.heads.fvit.rpn import flatten_predictions, rpn_losses
from clipself_seg.models.fvit import FViT, two_stage
from clipself_seg.models.fvit.parts import ROI_RULES, TrainingSettings
from clipself_seg.models.protocol import Classes
from tests.conftest import PARITY
from tests.heads.fvit import official

RULES = {"rpn": RPN_RULE, "roi_coco": ROI_RULES[False], "roi_lvis": ROI_RULES[True]}


@pytest.mark.parametrize("rule", RULES)
def test_matcher(rule):
    for case in json.loads((PARITY / "fvit_matcher.json").read_text())["cases"]:
        objects = torch.tensor(case["objects"], dtype=torch.float32).reshape(-1, 4)
        boxes = torch.tensor(case["boxes"], dtype=torch.float32)
        assert match_boxes(objects, boxes, RULES[rule]).tolist() == case[rule]


def first_and_evenly_spread(assigned, rule, generators):
    """The official case's sampling without randomness."""
    return [first_of(one, rule) for one in assigned]


def first_of(assigned, rule):
    positive = (assigned > 0).nonzero()[:, 0][: int(rule.number * rule.positive_fraction)]
    negative = (assigned == 0).nonzero()[:, 0]
    wanted, there = rule.number - len(positive), len(negative)
    if there > wanted:
        negative = negative[[k * there // wanted for k in range(wanted)]]
    return Sampled(positive, negative)


def detector(case, about, monkeypatch):
    """The heads of a case on a tower that takes no part."""
    parts = official.parts(case)
    content = official.about(case)
    clip = load_clip("ViT-Mini-8", None)
    rule = MatchRule(0.5, 0.5, 0.5 if content["rcnn_low_quality"] else None)
    model = FViT(
        clip=clip,
        backbone=parts.backbone,
        neck=parts.neck,
        rpn_head=parts.rpn_head,
        roi_head=parts.roi_head,
        blocks=(0, 1, 2, 3),
        side=64,
        pixels=((0, 0, 0), (1, 1, 1)),
        training=TrainingSettings(content["background_weight"], rule),
    )
    model.strides = content["strides"]
    seen = torch.ones(content["num_classes"]).bool()
    seen[content["novel"]] = False
    model.classes = Classes((("any",),) * content["num_classes"], seen=seen.numpy())
    monkeypatch.setattr(two_stage, "sample_boxes", first_and_evenly_spread)
    samples = []
    for size, boxes, labels in zip(about["img_shapes"], about["gt_boxes"], about["gt_labels"]):
        sample = {
            "image": torch.zeros(3, *size),
            "boxes": torch.tensor(boxes),
            "labels": torch.tensor(labels),
            "masks": torch.stack([ellipse(box, content["padded"]) for box in boxes]),
        }
        samples.append(sample)
    return model.train(), samples


def ellipse(box, side):
    x0, y0, x1, y1 = box
    pixel = torch.arange(side, dtype=torch.float64) + 0.5
    across = (pixel - (x0 + x1) / 2) / ((x1 - x0) / 2)
    down = (pixel - (y0 + y1) / 2) / ((y1 - y0) / 2)
    return across[None] ** 2 + down[:, None] ** 2 <= 1


@pytest.mark.parametrize("name", ["coco", "lvis"])
def test_losses_and_gradients(name, monkeypatch):
    case = f"fvit_{name}_train"
    about, wanted = official.about(case), official.expected(case)
    source = about["weights_of"]
    model, samples = detector(source, about, monkeypatch)
    sizes = official.about(source)["fpn_sizes"]
    levels = [x.requires_grad_() for x in official.levels(case, 2, sizes)]
    logits, deltas = model.rpn_head(levels)
    logits = [flatten_predictions(x, 1)[..., 0] for x in logits]
    deltas = [flatten_predictions(x, 4) for x in deltas]
    anchors = model.anchors(levels)
    everywhere = torch.cat(anchors)
    targets = model._rpn_targets(samples, everywhere)
    for i, sample in enumerate(samples):
        assigned = match_boxes(sample["boxes"], everywhere, RPN_RULE)
        positive = assigned > 0
        assert positive.nonzero()[:, 0].tolist() == wanted[f"rpn_assigned{i}"].tolist()
        assert assigned[positive].tolist() == wanted[f"rpn_assigned_gt{i}"].tolist()
        assert (assigned < 0).sum() == wanted[f"rpn_ignored_count{i}"]
        assert targets[i].sampled.positive.tolist() == wanted[f"rpn_pos{i}"].tolist()
        assert targets[i].sampled.negative.tolist() == wanted[f"rpn_neg{i}"].tolist()
    classification, regression = rpn_losses(logits, deltas, anchors, targets)
    near = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(classification, wanted["loss_rpn_cls"], **near)
    torch.testing.assert_close(regression, wanted["loss_rpn_bbox"], **near)
    proposals = [wanted["proposals0"], wanted["proposals1"]]
    for i, sample in enumerate(samples):
        own = match_boxes(sample["boxes"], proposals[i], model.loss_settings.roi_rule)
        assert own.tolist() == wanted[f"roi_assigned{i}"].tolist()
    losses = model.roi_losses(levels, proposals, samples, official.text(source), model.seen())
    near = {"rtol": 1e-4, "atol": 1e-5}
    for loss, value in losses.items():
        torch.testing.assert_close(value, wanted[loss][0], **near)
    total = classification.sum() + regression.sum() + sum(losses.values())
    torch.testing.assert_close(total, wanted["loss_total"], **near)
    total.backward()
    norms = {
        name: p.grad.double().norm() for name, p in model.named_parameters() if p.grad is not None
    }
    for grad_name, norm in zip(about["grad_names"], wanted["grad_norms"]):
        assert math.isclose(norms[grad_name], norm, rel_tol=1e-4, abs_tol=1e-7), grad_name
    for level, norm in zip(levels, wanted["fpn_grad_norms"]):
        own = 0 if level.grad is None else level.grad.double().norm()
        assert math.isclose(own, norm, rel_tol=1e-4, abs_tol=1e-7)
