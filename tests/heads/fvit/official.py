"""The official detector's parity cases: weights, text and inputs, which follow from names alone."""

import json
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from clipself_seg.heads.fvit.boxes import ROI_RULES, DetectionRule
from clipself_seg.heads.fvit.pyramid import FeaturePyramid, TapResizers
from clipself_seg.heads.fvit.roi_heads import DetectionSettings, LossSettings, RoIHeads
from clipself_seg.heads.fvit.rpn import RPN, ProposalRule
from tests.conftest import PARITY
from tests.parity.named_weights import named_input, named_state_dict, without_numbers


@cache
def about(case):
    return json.loads((PARITY / f"{case}.json").read_text())


@cache
def expected(case):
    arrays = np.load(PARITY / f"{case}.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays}


@cache
def state(case, tower=True):
    """Tensors by name; without the image tower's, if so, which are most of the numbers."""
    shapes = json.loads((PARITY / f"{case}.shapes.json").read_text())
    names = [name for name in shapes if tower or not name.startswith("backbone.visual.")]
    return named_state_dict({name: shapes[name] for name in names})


def text(case):
    """(C + 1, E), the background last."""
    shape = (about(case)["num_classes"] + 1, about(case)["embed_dim"])
    return F.normalize(named_input(f"{case}:text", shape), dim=-1)


def seen(case):
    classes = torch.ones(about(case)["num_classes"]).bool()
    classes[about(case)["novel"]] = False
    return classes


def stages(case):
    """RPN and RoI heads with the settings of a case, and weights of their own."""
    content = about(case)
    rule = content["score_thr"], content["nms_iou"], content["max_per_img"]
    rpn = RPN(content["strides"], ProposalRule(), norm=content["rpn_norm"])
    heads = RoIHeads(
        content["embed_dim"],
        content["strides"],
        LossSettings(content["background_weight"], ROI_RULES[content["rcnn_low_quality"]]),
        DetectionSettings(
            content["alpha"],
            content["beta"],
            clip_temperature=content["vlm_temperature"],
            rule=DetectionRule(*rule),
        ),
        masks=content["mask_head"],
    )
    return rpn, heads


def parts(case):
    """The trained parts with the case's weights, in evaluation mode."""
    module = nn.Module()
    with without_numbers():
        module.backbone = TapResizers(about(case)["width"])
        module.neck = FeaturePyramid(about(case)["width"])
        module.rpn_head, module.roi_head = stages(case)
    own = {
        name: tensor
        for name, tensor in state(case, tower=False).items()
        if not name.startswith("roi_head.bbox_head.fc_cls")
    }
    temperature = torch.tensor(about(case)["detect_temperature"])
    own["roi_head.bbox_head.detect_temperature"] = temperature
    left = module.load_state_dict(own, strict=False)
    assert not left.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in left.missing_keys)
    return module.eval()


def taps(case):
    grid = about(case)["neck_grid"]
    shape = (1, about(case)["width"], grid, grid)
    return [named_input(f"{case}:tap{i}", shape) for i in range(4)]


def levels(case, images=1, sizes=None):
    return [
        named_input(f"{case}:fpn{i}", (images, 256, s, s))
        for i, s in enumerate(sizes or about(case)["fpn_sizes"])
    ]


def dense(case):
    content = about(case)
    shape = (1, content["embed_dim"], content["grid"], content["grid"])
    return F.normalize(named_input(f"{case}:vlm", shape), dim=1)[0]


def close(own, other, tolerance):
    torch.testing.assert_close(own, other.float(), rtol=0, atol=tolerance)


def same_boxes(boxes, scores, official, pixels, relative, labels=None, official_labels=None):
    """Whether 99 in 100 official boxes (corners, score, label) are among our own."""
    hits = 0
    for row, (*box, score) in enumerate(official.tolist()):
        near = (boxes - torch.tensor(box)).abs().amax(dim=1) < pixels
        near &= (scores - score).abs() < relative * abs(score)
        if labels is not None:
            near &= labels == official_labels[row]
        hits += bool(near.any())
    return hits >= 0.99 * len(official)


def same_detections(detected, wanted, name, pixels, relative):
    """Whether detections (boxes, scores, labels) are those of the case, and as many."""
    boxes, scores, labels = detected
    official = wanted[f"{name}_boxes"]
    matched = same_boxes(
        boxes, scores, official, pixels, relative, labels, wanted[f"{name}_labels"]
    )
    return matched and abs(len(boxes) - len(official)) <= max(1, 0.01 * len(official))
