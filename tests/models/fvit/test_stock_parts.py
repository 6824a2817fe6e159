"""F-ViT's parts in Detectron2's own GeneralizedRCNN: the same detections, and a step that trains what learns."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from clipself_seg.errors import InputError
from clipself_seg.models.fvit.stock_parts import stock_state
from tests.models.fvit.test_model import TINY, built, sample, tiny

STOCK = TINY | {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "FViTBackbone",
    "MODEL.PROPOSAL_GENERATOR.NAME": "FViTRPN",
    "MODEL.ROI_HEADS.NAME": "FViTROIHeads",
    "MODEL.PIXEL_MEAN": "[123.675, 116.28, 103.53]",
    "MODEL.PIXEL_STD": "[58.395, 57.12, 57.375]",
    "INPUT.FORMAT": "RGB",
}
CLASSES = ["red ball", "blue box", "green cone"]


def stock(**keys) -> GeneralizedRCNN:
    return built(STOCK | {key.replace("__", "."): value for key, value in keys.items()})


def both(**keys):
    """An FViT whose scores and boxes are not all alike, and the stock model of its weights."""
    ours = tiny(SCORE_THRESHOLD=0.0, **keys).eval()
    for head in (ours.roi_head.bbox_head.fc_reg, ours.rpn_head.rpn_cls, ours.rpn_head.rpn_reg):
        torch.nn.init.normal_(head.weight, std=0.1)
    names = {f"MODEL__FVIT__{key}": value for key, value in keys.items()}
    theirs = stock(MODEL__FVIT__SCORE_THRESHOLD=0.0, **names).eval()
    assert theirs.load_state_dict(stock_state(ours.state_dict())).missing_keys == []
    for model in (ours, theirs.roi_heads):
        model.set_vocabulary(CLASSES, seen=[True, True, False])
    return ours, theirs


@torch.no_grad()  # as FViT evaluates
def test_detections_are_those_of_fvit():
    ours, theirs = both(MASKS=True, RPN_NORM=True)
    assert type(theirs) is GeneralizedRCNN
    small = sample(1) | {"image": sample(1)["image"][:, :40, :50]}
    samples = [sample(0), small]
    for one, other in zip(ours(samples), theirs(samples), strict=True):
        one, other = one["instances"], other["instances"]
        assert len(one) > 20 and one.image_size == other.image_size
        assert torch.equal(one.pred_classes, other.pred_classes)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
        assert (one.pred_masks != other.pred_masks).float().mean() < 1e-4


@torch.no_grad()
def test_detections_are_in_pixels_of_the_original():
    ours, theirs = both()
    large = [sample() | {"height": 128, "width": 112}]
    one, other = ours(large)[0]["instances"], theirs(large)[0]["instances"]
    assert one.image_size == other.image_size == (128, 112)
    torch.testing.assert_close(one.pred_boxes.tensor, other.pred_boxes.tensor)
    torch.testing.assert_close(one.scores, other.scores)


def targets(own) -> dict:
    instances = Instances(tuple(own["image"].shape[1:]))
    instances.gt_boxes, instances.gt_classes = Boxes(own["boxes"]), own["labels"]
    instances.gt_masks = BitMasks(own["masks"])
    return own | {"instances": instances}


@pytest.mark.parametrize("masks", [False, True])
def test_a_step_trains_all_but_clip(masks):
    model = stock(MODEL__FVIT__MASKS=masks).train()
    model.roi_heads.set_vocabulary(CLASSES)
    losses = model([targets(sample(0)), targets(sample(1))])
    names = {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"}
    assert set(losses) == names | ({"loss_mask"} if masks else set())
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    frozen = ("backbone.tower.", "roi_heads.clip.")
    learned = {n for n, _ in model.named_parameters() if not n.startswith(frozen)}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == learned
    assert not model.backbone.tower.training


def test_parts_of_others_stand_beside_ours():
    model = stock(
        MODEL__PROPOSAL_GENERATOR__NAME="RPN",
        MODEL__RPN__IN_FEATURES="['p2', 'p3', 'p4', 'p5', 'p6']",
        MODEL__RPN__POST_NMS_TOPK_TRAIN=50,
        MODEL__ANCHOR_GENERATOR__SIZES="[[8], [16], [32], [48], [64]]",
    ).train()
    model.roi_heads.set_vocabulary(CLASSES)
    with EventStorage():
        losses = model([targets(sample())])
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_bbox"}
    assert all(loss.isfinite() for loss in losses.values())
    assert "instances" in model.eval()([sample()])[0]


def test_shapes_of_the_backbone_are_honest():
    backbone = stock().backbone.eval()
    features = backbone(torch.zeros(1, 3, 64, 64))
    shapes = backbone.output_shape()
    assert features.keys() == shapes.keys()
    for name, feature in features.items():
        cells = int(64 / shapes[name].stride)
        assert feature.shape == (1, shapes[name].channels, cells, cells)


def test_what_does_not_fit_is_refused():
    model = stock().eval()
    with pytest.raises(RuntimeError, match="call set_vocabulary"):
        model([sample()])
    with pytest.raises(InputError, match="does not fit into INPUT.DETECTION.SIDE 64"):
        model([sample() | {"image": torch.zeros(3, 65, 10)}])
    with pytest.raises(InputError, match="FViTBackbone is frozen, FViT is not"):
        stock(MODEL__FVIT__TRAIN_CLIP=True)
    with pytest.raises(InputError, match="SIDE 60 is not a multiple .*; take 56 or 64"):
        stock(INPUT__DETECTION__SIDE=60)
    with pytest.raises(InputError, match="gives no p2, .*: set MODEL.BACKBONE.NAME to FViTB"):
        stock(MODEL__BACKBONE__NAME="CLIPBackbone")
