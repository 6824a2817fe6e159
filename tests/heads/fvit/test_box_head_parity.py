"""Every part of F-ViT against the numbers of the official detector."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.clip.region_pooling import pool, strided_box_weights
from clipself_seg.heads.fusion import fuse_detections
from clipself_seg.heads.fvit.box_head import DELTA_WEIGHTS
from clipself_seg.heads.fvit.boxes import decode_boxes
from clipself_seg.heads.fvit.detections import DetectionRule, select_detections
from clipself_seg.heads.fvit.roi_pooling import pool_boxes, pyramid_levels
from clipself_seg.heads.fvit.rpn import (
    ProposalRule,
    flatten_predictions,
    make_anchors,
    propose,
)
from tests.heads.fvit import official
from tests.parity.named_weights import named_input

CASES = ("fvit_coco_b16", "fvit_lvis_b16")


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@functools.cache
def parts(case):
    return official.parts(case)


def close(own, other, tolerance):
    torch.testing.assert_close(own, other.float(), rtol=0, atol=tolerance)


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
def rpn(case):
    logits, deltas = parts(case).rpn_head(official.levels(case))
    content = official.about(case)
    sizes = [(s, s) for s in content["fpn_sizes"]]
    return logits, deltas, make_anchors(sizes, content["strides"])


def test_rpn(case):
    wanted, content = official.expected(case), official.about(case)
    logits, deltas, anchors = rpn(case)
    for i, (every, step) in enumerate(zip((8, 4, 2, 1, 1), (197, 53, 13, 3, 1))):
        close(logits[i][0, :, ::every, ::every], wanted[f"rpn_logits{i}"], 1e-5)
        close(deltas[i][0, :, ::every, ::every], wanted[f"rpn_deltas{i}"], 1e-5)
        close(anchors[i][::step], wanted[f"rpn_anchors{i}"], 1e-3)
    flat = [flatten_predictions(x, 1)[0, :, 0] for x in logits]
    regression = [flatten_predictions(x, 4)[0] for x in deltas]
    boxes, scores = propose(flat, regression, anchors, tuple(content["img_shape"]), ProposalRule())
    assert len(boxes) == wanted["rpn_proposals_count"]
    first = wanted["rpn_proposals"]
    ours = boxes[:405], scores[:405], torch.zeros(405, dtype=torch.int64)
    theirs = torch.cat([first, torch.zeros(len(first), 1)], dim=1)
    near = [(ours[0] - row[:4]).abs().amax(1).min() < 0.01 for row in theirs]
    assert sum(near) >= 0.99 * len(theirs)
    close(scores[: len(first)], first[:, 4], 1e-5)


@torch.no_grad()
def test_head(case):
    wanted = official.expected(case)
    head = parts(case).roi_head.bbox_head
    embeddings, deltas = head(named_input(f"{case}:roi", (16, 256, 7, 7)))
    close(head.logits(embeddings, official.text(case)), wanted["head_logits"], 3e-5)
    close(deltas, wanted["head_deltas"], 1e-5)


@torch.no_grad()
def test_scores_and_detections(case):
    wanted, content = official.expected(case), official.about(case)
    head, levels = parts(case).roi_head.bbox_head, official.levels(case)
    proposals, text = wanted["proposals"], official.text(case)
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
    cosines = F.normalize(pooled, dim=1) @ text.T
    close(content["vlm_temperature"] * cosines, wanted["vlm_logits"], 3e-5)
    seen = torch.ones(content["num_classes"]).bool()
    seen[content["novel"]] = False
    exponents = content["alpha"], content["beta"]
    fused = fuse_detections(detector, content["vlm_temperature"] * cosines, seen, *exponents)
    close(fused, wanted["fused_scores"], 3e-6)
    boxes = decode_boxes(proposals, deltas, content["img_shape"], DELTA_WEIGHTS)
    boxes = boxes / torch.tensor(content["scale_factor_wh"] * 2)
    rule = DetectionRule(content["score_thr"], content["nms_iou"], content["max_per_img"])
    assert agree(select_detections(boxes, fused[:, :-1], rule), wanted, "det")
    if "transfer" in content:
        other = content["transfer"]
        fixed = head.logits(embeddings, text, other["temperature"])
        every = torch.ones_like(seen)
        scores = fuse_detections(
            fixed, other["vlm_temperature"] * cosines, every, other["alpha"], 0.5
        )
        close(scores, wanted["transfer_fused_scores"], 3e-6)
        assert agree(select_detections(boxes, scores[:, :-1], rule), wanted, "transfer_det")


def agree(detected, wanted, name):
    theirs = torch.cat([wanted[f"{name}_boxes"], wanted[f"{name}_labels"][:, None]], dim=1)
    return official.same_detections(detected[:3], theirs, 0.01, 1e-4)


@torch.no_grad()
def test_masks():
    from detectron2.layers.mask_ops import paste_masks_in_image

    case = "fvit_lvis_b16"
    wanted, content = official.expected(case), official.about(case)
    boxes = wanted["det_boxes"][:, :4].float()
    scale = torch.tensor(content["scale_factor_wh"] * 2)
    features = pool_boxes(official.levels(case), content["strides"], [boxes * scale], 14)
    logits = parts(case).roi_head.mask_head(features)
    close(logits[:12], wanted["mask_logits"].reshape(12, 28, 28), 1e-5)
    masks = paste_masks_in_image(logits.sigmoid(), boxes, tuple(content["ori_shape"]), 0.5)
    areas = masks.flatten(1).sum(1)
    assert (areas - wanted["mask_areas"]).abs().max() <= 2
