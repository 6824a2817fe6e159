"""The official detector's parity cases: weights, text and inputs, which follow from names alone."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from clipself_seg.heads.fvit.feature_pyramid import FeaturePyramid
from clipself_seg.heads.fvit.resizers import TapResizers
from clipself_seg.heads.fvit.rpn import RPNHead
from clipself_seg.models.fvit.parts import RoIHeads
from tests.conftest import PARITY
from tests.parity.named_weights import named_input, named_state_dict


@cache
def about(case):
    return json.loads((PARITY / f"{case}.json").read_text())


@cache
def expected(case):
    arrays = np.load(PARITY / f"{case}.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays}


@cache
def state(case):
    return named_state_dict(json.loads((PARITY / f"{case}.shapes.json").read_text()))


def text(case):
    """(C + 1, E), the background last."""
    shape = (about(case)["num_classes"] + 1, about(case)["embed_dim"])
    return F.normalize(named_input(f"{case}:text", shape), dim=-1)


def parts(case):
    """The trained parts with the case's weights, in evaluation mode."""
    content = about(case)
    module = nn.Module()
    module.backbone = TapResizers(content["width"])
    module.neck = FeaturePyramid(content["width"])
    module.rpn_head = RPNHead(norm=content["rpn_norm"])
    module.roi_head = RoIHeads(content["embed_dim"], 1.0, 256, content["mask_head"])
    own = {
        name: tensor
        for name, tensor in state(case).items()
        if not name.startswith(("backbone.visual.", "roi_head.bbox_head.fc_cls"))
    }
    own["roi_head.bbox_head.detect_temperature"] = torch.tensor(content["detect_temperature"])
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


def same_detections(own, official, pixels, relative):
    """Whether 99 in 100 official detections (corners, score, label) are among our own, and as many."""
    boxes, scores, labels = own
    found = 0
    for *box, score, label in official.tolist():
        near = (boxes - torch.tensor(box)).abs().amax(dim=1) < pixels
        near &= (scores - score).abs() < relative * abs(score)
        found += bool((near & (labels == label)).any())
    count = len(official)
    return found >= 0.99 * count and abs(len(boxes) - count) <= max(1, 0.01 * count)
