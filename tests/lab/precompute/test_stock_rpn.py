"""Detectron2's RPN under this project's protocol: it trains, is written and read, and proposes in original pixels."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.checkpoints.training_state import trained_parameters
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models.build import build_model
from clipself_seg.models.model_protocols import TrainableModel
from lab.precompute.stock_rpn import WEIGHTS_KEY, StockRPN
from tests.conftest import ROOT
from tests.models.fvit.test_model import sample

MINI = ROOT / "configs/mini/rpn_r18.yaml"
# Detectron2 has no R-18 that is narrower.
NARROW = "MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.WIDTH_PER_GROUP 8"
NARROW += " MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.FPN.OUT_CHANNELS 8"


def tiny(*opts) -> StockRPN:
    return build_model(load_config(MINI, [*NARROW.split(), *opts]))


def step(model):
    with EventStorage():
        losses = model.train()([sample(0), sample(1)])
    sum(losses.values()).backward()
    return losses


def test_a_model_as_the_trainer_wants_it():
    assert issubclass(StockRPN, TrainableModel)


def test_one_step_trains_all_of_it():
    model = tiny()
    losses = step(model)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc"}
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None for p in trained_parameters(model).values())
    groups = model.optimizer_groups(load_config(MINI, []).SOLVER)
    assert {group["weight_decay"] for group in groups} == {0.05, 0.0}


def test_a_backbone_that_does_not_learn_stays():
    model = tiny("SOLVER.BACKBONE_MULTIPLIER", "0")
    begin = model.original_hash()
    step(model)
    assert model.original_hash() == begin
    trained = trained_parameters(model)
    assert trained and not any(name.startswith("backbone.bottom_up") for name in trained)
    before = model.original_hash()
    model.backbone.bottom_up.stem.conv1.weight.data += 1
    assert model.original_hash() != before


def test_proposals_are_in_pixels_of_the_original():
    model = tiny().eval()
    ((boxes, scores),) = model.propose([sample() | {"height": 128, "width": 112}])
    ((inside, same),) = model.propose([sample()])
    torch.testing.assert_close(boxes, inside * 2)
    assert torch.equal(scores, same) and (scores.diff() <= 0).all()
    assert len(boxes) and 0 <= scores.min() and scores.max() <= 1


def test_what_is_exported_is_read_and_nothing_else(tmp_path):
    model = tiny()
    step(model)
    path = tmp_path / "model_final.pth"
    model.export(path)
    other = tiny("SEED", "3")
    assert other.weights_hash() != model.weights_hash()
    tensors = read_checkpoint(path).tensors
    other.load_checkpoint(tensors, "model_final.pth")
    assert other.weights_hash() == model.weights_hash()
    del tensors["backbone.fpn_output2.weight"]
    with pytest.raises(InputError, match="lacks 1 tensor: .*no StockRPN of this configuration"):
        other.load_checkpoint(tensors, "model_final.pth")
    with pytest.raises(InputError, match=r"of shape \(8, 16, 1, 1\)"):
        tiny("MODEL.FPN.OUT_CHANNELS", "16").load_checkpoint(
            read_checkpoint(path).tensors, "model_final.pth"
        )


def test_weights_of_a_backbone_begin_a_training(tmp_path):
    first = tiny()
    path = tmp_path / "R-18.pth"
    torch.save(first.backbone.bottom_up.state_dict() | {"fc.weight": torch.zeros(3, 8)}, path)
    second = tiny("SEED", "3", WEIGHTS_KEY, str(path))
    stems = [model.backbone.bottom_up.stem.conv1.weight for model in (first, second)]
    assert torch.equal(*stems)
    torch.save({"stem.conv1.weight": torch.zeros(8, 3, 7, 7)}, path)
    with pytest.raises(InputError, match=f"{WEIGHTS_KEY} .*R-18.pth lacks"):
        tiny(WEIGHTS_KEY, str(path))


def test_what_would_diverge_or_means_nothing_is_refused():
    real = load_config(ROOT / "configs/detection/rpn_r50_ov_coco.yaml", [])
    with pytest.raises(InputError, match=f"would be random .* give {WEIGHTS_KEY}, such as"):
        StockRPN.training_config(real)
    given = load_config(ROOT / "configs/detection/rpn_r50_ov_coco.yaml", [WEIGHTS_KEY, "R-50.pkl"])
    assert StockRPN.training_config(given) is given
    with pytest.raises(InputError, match="python tools/precompute.py proposals writes its boxes"):
        StockRPN.training_config(load_config(MINI, ["DATASETS.TEST", "('mini_val_boxes',)"]))
    with pytest.raises(InputError, match="StockRPN knows no classes"):
        StockRPN.require_trained(real)
