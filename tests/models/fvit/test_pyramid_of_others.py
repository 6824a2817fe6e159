"""docs/examples/fvit_pyramid.py: Detectron2's GeneralizedRCNN learns and detects on F-ViT's pyramid."""

import importlib.util

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, GeneralizedRCNN, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from clipself_seg.config import add_clipself_seg_config
from tests.conftest import ROOT
from tests.models.fvit.test_model import TINY, sample


@pytest.fixture
def model() -> GeneralizedRCNN:
    path = ROOT / "docs/examples/fvit_pyramid.py"
    spec = importlib.util.spec_from_file_location("fvit_pyramid", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    cfg = get_cfg()
    add_clipself_seg_config(cfg)
    levels = ["p2", "p3", "p4", "p5", "p6"]
    own = {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.NAME": "FViTPyramid",
        "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
        "MODEL.RPN.IN_FEATURES": levels,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [48], [64]],
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.NUM_CLASSES": 2,
        "MODEL.ROI_HEADS.IN_FEATURES": levels[:4],
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    }
    cfg.merge_from_list([part for pair in (TINY | own).items() for part in pair])
    yield build_model(cfg)
    BACKBONE_REGISTRY._obj_map.pop("FViTPyramid")


def test_a_step_trains_all_but_clip_and_detections_follow(model):
    given = sample()
    instances = Instances((64, 56), gt_boxes=Boxes(given["boxes"]), gt_classes=given["labels"])
    with EventStorage():
        losses = model([given | {"instances": instances}])
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    clip = "backbone.fvit.clip."
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learned == {n for n, _ in model.named_parameters() if not n.startswith(clip)}
    assert not model.backbone.fvit.clip.training
    assert "instances" in model.eval()([given])[0]


def test_shapes_of_the_backbone_are_honest(model):
    features, shapes = model.backbone(torch.zeros(1, 3, 64, 64)), model.backbone.output_shape()
    assert features.keys() == shapes.keys()
    for name, feature in features.items():
        cells = 64 // shapes[name].stride
        assert feature.shape == (1, shapes[name].channels, cells, cells)
