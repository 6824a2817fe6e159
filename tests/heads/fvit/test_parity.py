"""Every part of F-ViT, in evaluation and in a step of training, against the numbers of the official detector."""

import copy
import functools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers.mask_ops import paste_masks_in_image

from clipself_seg.clip.region_pooling import pool, strided_box_weights
from clipself_seg.heads.fusion import fuse_detections
from clipself_seg.heads.fvit import boxes as box_ops
from clipself_seg.heads.fvit.boxes import (
    ROI_RULES,
    RPN_RULE,
    Objects,
    Sampled,
    decode_boxes,
    match_boxes,
    select_detections,
)
from clipself_seg.heads.fvit.roi_heads import DELTA_WEIGHTS, pool_boxes, pyramid_levels
from clipself_seg.heads.fvit.rpn import ProposalRule, best_boxes, flatten_predictions, rpn_losses
from tests.conftest import PARITY
from tests.heads.fvit import official
from tests.heads.fvit.official import close
from tests.parity.named_weights import named_input

CASES = ("fvit_coco_b16", "fvit_lvis_b16")
RULES = {"rpn": RPN_RULE, "roi_coco": ROI_RULES[False], "roi_lvis": ROI_RULES[True]}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@functools.cache
def parts(case):
    return official.parts(case)


@torch.no_grad()
def test_neck(case):
    wanted = official.expected(case)
    module = parts(case)
    maps = module.backbone(official.taps(case))
    for i, stride in enumerate((4, 2, 1, 1)):
        close(maps[i][0, ::16, ::stride, ::stride], wanted[f"neck_map{i}"], 1e-5)
    levels = module.neck(official.taps(case), module.backbone)
    for i, stride in enumerate((4, 2, 1, 1, 1)):
        close(levels[i][0, ::8, ::stride, ::stride], wanted[f"neck_p{i + 2}"], 1e-4)


@torch.no_grad()
def test_rpn(case):
    wanted, content = official.expected(case), official.about(case)
    network = parts(case).rpn_head
    logits, deltas = network(official.levels(case))
    anchors = network.anchors(logits)
    for i, (every, step) in enumerate(zip((8, 4, 2, 1, 1), (197, 53, 13, 3, 1))):
        close(logits[i][0, :, ::every, ::every], wanted[f"rpn_logits{i}"], 1e-5)
        close(deltas[i][0, :, ::every, ::every], wanted[f"rpn_deltas{i}"], 1e-5)
        close(anchors[i][::step], wanted[f"rpn_anchors{i}"], 1e-3)
    flat = [flatten_predictions(x, 1)[0, :, 0] for x in logits]
    regression = [flatten_predictions(x, 4)[0] for x in deltas]
    size = tuple(content["img_shape"])
    boxes, scores, _ = best_boxes(flat, regression, anchors, size, ProposalRule())
    assert len(boxes) == wanted["rpn_pre_nms_count"]
    close(boxes.double().sum(dim=0).float(), wanted["rpn_pre_nms_sum"], 0.1)
    first = wanted["rpn_pre_nms_first"]
    for row, box in enumerate(first):  # scores closer than 1e-6 may swap
        tied = (scores[:2000] - scores[row]).abs() < 1e-6
        assert (boxes[:2000][tied] - box).abs().amax(dim=1).min() < 1e-3
    boxes, scores = network.propose(logits, deltas, 0, size)
    assert len(boxes) == wanted["rpn_proposals_count"]
    assert official.same_boxes(boxes, scores, wanted["rpn_proposals"], 0.01, 1e-4)
    close(scores[:400], wanted["rpn_proposals"][:, 4], 1e-5)


@torch.no_grad()
def test_scores_and_detections(case, monkeypatch):
    wanted, content = official.expected(case), official.about(case)
    heads, levels, text = parts(case).roi_head, official.levels(case), official.text(case)
    head = heads.bbox_head
    embeddings, deltas = head(named_input(f"{case}:roi", (16, 256, 7, 7)))
    close(head.logits(embeddings, text), wanted["head_logits"], 3e-5)
    close(deltas, wanted["head_deltas"], 1e-5)
    proposals = wanted["proposals"]
    assert pyramid_levels(proposals).tolist() == wanted["roi_levels"].tolist()
    features = pool_boxes(levels, content["strides"], [proposals], 7)
    close(features[:, ::32], wanted["roi_features"], 1e-4)
    embeddings, deltas = head(features)
    detector = head.logits(embeddings, text)
    close(detector, wanted["det_logits"], 3e-5)
    close(deltas, wanted["det_deltas"], 1e-5)
    dense = official.dense(case)
    pooled = pool(dense, strided_box_weights(proposals, content["strides"][2], dense.shape[1:]))
    close(pooled[:, ::4], wanted["vlm_features"], 1e-6)
    clip_logits = heads.clip_logits(dense, proposals, text)
    close(clip_logits, wanted["vlm_logits"], 3e-5)
    seen, exponents = official.seen(case), (content["alpha"], content["beta"])
    close(fuse_detections(detector, clip_logits, seen, *exponents), wanted["fused_scores"], 3e-6)
    size, scale = content["img_shape"], torch.tensor(content["scale_factor_wh"] * 2)
    if heads.mask_head is not None:  # test_masks has its numbers
        none = torch.zeros(1, 28, 28)
        monkeypatch.setattr(
            heads.mask_head, "forward", lambda features: none.repeat(len(features), 1, 1)
        )
    detected, masks = heads.detect(levels, dense, proposals, size, scale, text, seen)
    assert official.same_detections(detected, wanted, "det", 0.01, 1e-4)
    if masks is not None:
        masks = paste_masks_in_image(masks, detected.boxes, tuple(content["ori_shape"]))
        assert len(masks) == len(detected.boxes)
    if "transfer" in content:
        other = content["transfer"]
        fixed = head.logits(embeddings, text, other["temperature"])
        cosines = F.normalize(pooled, dim=1) @ text.T
        everything = torch.ones_like(seen)
        scores = fuse_detections(
            fixed, other["vlm_temperature"] * cosines, everything, other["alpha"], 0.5
        )
        close(scores, wanted["transfer_fused_scores"], 3e-6)
        boxes = decode_boxes(proposals, deltas, size, DELTA_WEIGHTS) / scale
        detected = select_detections(boxes, scores[:, :-1], heads.settings.rule)
        assert official.same_detections(detected, wanted, "transfer_det", 0.01, 1e-4)


@torch.no_grad()
def test_masks():
    case = "fvit_lvis_b16"
    wanted, content = official.expected(case), official.about(case)
    boxes = wanted["det_boxes"][:, :4].float()
    scale = torch.tensor(content["scale_factor_wh"] * 2)
    features = pool_boxes(official.levels(case), content["strides"], [boxes * scale], 14)
    logits = parts(case).roi_head.mask_head(features)
    close(logits[:12], wanted["mask_logits"], 1e-5)
    rows, columns = content["ori_shape"]
    bits = np.unpackbits(wanted["mask_bits"].numpy(), axis=1).reshape(12, rows, columns)
    masks = paste_masks_in_image(logits.sigmoid(), boxes, (rows, columns))
    areas = masks.flatten(1).sum(1)
    assert (areas - wanted["mask_areas"]).abs().max() <= 2
    assert (masks[:12].numpy() != bits).sum(axis=(1, 2)).max() <= 2


@pytest.mark.parametrize("rule", RULES)
def test_matcher(rule):
    for case in json.loads((PARITY / "fvit_matcher.json").read_text())["cases"]:
        objects = torch.tensor(case["objects"], dtype=torch.float32).reshape(-1, 4)
        boxes = torch.tensor(case["boxes"], dtype=torch.float32)
        assert match_boxes(objects, boxes, RULES[rule]).tolist() == case[rule]


def first_and_evenly_spread(assigned, rule, generators):
    """The official case's sampling without randomness."""
    return [first_of(of_image, rule) for of_image in assigned]


def first_of(assigned, rule):
    positive = (assigned > 0).nonzero()[:, 0][: int(rule.number * rule.positive_fraction)]
    negative = (assigned == 0).nonzero()[:, 0]
    needed, there = rule.number - len(positive), len(negative)
    if there > needed:
        negative = negative[[k * there // needed for k in range(needed)]]
    return Sampled(positive, negative)


def ellipse(box, side):
    x0, y0, x1, y1 = box
    pixel = torch.arange(side, dtype=torch.float64) + 0.5
    across = (pixel - (x0 + x1) / 2) / ((x1 - x0) / 2)
    down = (pixel - (y0 + y1) / 2) / ((y1 - y0) / 2)
    return across[None] ** 2 + down[:, None] ** 2 <= 1


def objects_of(about, side):
    return [
        Objects(
            torch.tensor(boxes),
            torch.tensor(labels),
            torch.stack([ellipse(box, side) for box in boxes]),
            draw=0,
        )
        for boxes, labels in zip(about["gt_boxes"], about["gt_labels"])
    ]


@pytest.mark.parametrize("name", ["coco", "lvis"])
def test_losses_and_gradients(name, monkeypatch):
    case = f"fvit_{name}_train"
    about, wanted = official.about(case), official.expected(case)
    source = about["weights_of"]
    model, seen = copy.deepcopy(parts(source)).train(), official.seen(source)
    monkeypatch.setattr(box_ops, "sample_boxes", first_and_evenly_spread)
    objects = objects_of(about, official.about(source)["padded"])
    sizes = official.about(source)["fpn_sizes"]
    levels = [x.requires_grad_() for x in official.levels(case, 2, sizes)]
    logits, deltas = model.rpn_head(levels)
    anchors = model.rpn_head.anchors(levels)
    targets = model.rpn_head.targets(objects, torch.cat(anchors))
    proposals = [wanted["proposals0"], wanted["proposals1"]]
    rois = model.roi_head.sample_rois(proposals, objects, len(seen))
    for i, of_image in enumerate(objects):
        assigned = match_boxes(of_image.boxes, torch.cat(anchors), RPN_RULE)
        positive = assigned > 0
        matched = match_boxes(of_image.boxes, proposals[i], RULES[f"roi_{name}"])
        count = len(of_image.boxes)
        both = torch.cat([wanted[f"roi_pos{i}"], wanted[f"roi_neg{i}"]])
        labels = torch.full((len(both),), len(seen))
        labels[: rois[i].positives] = of_image.labels[wanted[f"roi_pos_gt{i}"]]
        for own, array in (
            (positive.nonzero()[:, 0], wanted[f"rpn_assigned{i}"]),
            (assigned[positive], wanted[f"rpn_assigned_gt{i}"]),
            ((assigned < 0).sum(), wanted[f"rpn_ignored_count{i}"]),
            (targets[i].sampled.positive, wanted[f"rpn_pos{i}"]),
            (targets[i].sampled.negative, wanted[f"rpn_neg{i}"]),
            (matched, wanted[f"roi_assigned{i}"]),
            (rois[i].boxes, torch.cat([of_image.boxes, proposals[i]])[both]),
            (rois[i].numbers[: rois[i].positives] - 1, wanted[f"roi_pos_gt{i}"]),
            (rois[i].labels, labels),
        ):
            assert own.tolist() == array.tolist()
        assert rois[i].positives == len(wanted[f"roi_pos{i}"]) >= count
    flat = [flatten_predictions(x, 1)[..., 0] for x in logits]
    regression = [flatten_predictions(x, 4) for x in deltas]
    near = {"rtol": 1e-4, "atol": 1e-6}
    for own, loss in zip(
        rpn_losses(flat, regression, anchors, targets), ("loss_rpn_cls", "loss_rpn_bbox")
    ):
        torch.testing.assert_close(own, wanted[loss], **near)
    losses = model.rpn_head.losses(logits, deltas, objects)
    losses |= model.roi_head.losses(levels, proposals, objects, official.text(source), seen)
    near = {"rtol": 1e-4, "atol": 1e-5}
    for loss, value in losses.items():
        torch.testing.assert_close(value, wanted[loss].sum(), **near)
    total = sum(losses.values())
    torch.testing.assert_close(total, wanted["loss_total"], **near)
    total.backward()
    norms = {n: p.grad.double().norm() for n, p in model.named_parameters() if p.grad is not None}
    for grad_name, norm in zip(about["grad_names"], wanted["grad_norms"]):
        assert math.isclose(norms[grad_name], norm, rel_tol=1e-4, abs_tol=1e-7), grad_name
    for level, norm in zip(levels, wanted["fpn_grad_norms"]):
        own = 0 if level.grad is None else level.grad.double().norm()
        assert math.isclose(own, norm, rel_tol=1e-4, abs_tol=1e-7)
