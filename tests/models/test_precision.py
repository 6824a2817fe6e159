"""TEST.PRECISION bfloat16 and float32 agree, in every task; SOLVER.AMP is of training alone."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

import clipself_seg
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models import CLIPSelf
from clipself_seg.models.cat_seg.cat_seg import CATSeg
from clipself_seg.models.cat_seg.cat_seg_config import CATSegTraining
from clipself_seg.models.fvit.fvit import FViT
from lab.mini.concepts import WORLDS
from lab.mini.scenes import draw_scene

SCENE = draw_scene(np.random.default_rng(3), WORLDS["mini"]).image
TRAINING = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"]
LOW = ["TEST.PRECISION", "bfloat16"]


def results(task, model):
    """Of the scene in float32, in float32 with SOLVER.AMP, and in bfloat16."""
    for opts in ([], TRAINING, LOW):
        predictor = clipself_seg.load(model, task=task, device="cpu", opts=opts)
        assert predictor.model.reading().precision == (torch.bfloat16 if opts is LOW else None)
        yield predictor(SCENE, "mini")


@pytest.mark.parametrize("model", ["mini", "mini-clipself"])
def test_labels_agree(model):
    exact, trained_low, low = results("semantic", model)
    assert (exact.class_scores == trained_low.class_scores).all()
    assert (exact.class_scores != low.class_scores).any()
    assert (exact.labels == trained_low.labels).all() and (exact.labels == low.labels).mean() > 0.99
    np.testing.assert_allclose(low.class_scores, exact.class_scores, atol=0.05)


def types_of(parts, model, sample):
    """Type of the result of each part of a model that sees a sample, once for each call."""
    types = []
    keep = lambda module, inputs, output: types.append(output.dtype)  # noqa: E731
    hooks = [part.register_forward_hook(keep) for part in parts]
    with torch.no_grad():
        model([sample])
    for hook in hooks:
        hook.remove()
    return types


PART = torch.from_numpy(SCENE[:128, :128]).permute(2, 0, 1)
IMAGE = {"image": PART, "height": 128, "width": 128}


def test_what_cat_seg_adds_up_and_compares_stays_in_float32():
    """8 bits would round the sum anew at each block, and let the logits of close classes tie."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "mini-cat-seg", *LOW]
    model = CATSeg(load_config("mini/semseg", opts)).eval()
    model.set_vocabulary("red star, grass")
    aggregator = model.aggregator
    blocks = [layer.swin_block.block_2 for layer in aggregator.layers]
    exact = [*blocks, *(layer.attention for layer in aggregator.layers), aggregator.head]
    assert set(types_of(exact, model, IMAGE)) == {torch.float32}
    assert set(types_of([blocks[0].mlp, aggregator.decoder2], model, IMAGE)) == {torch.bfloat16}


def test_scores_and_coordinates_of_a_detector_stay_in_float32():
    """8 bits would let the best of the anchors tie, and move a box by the 256th part of its way."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "mini-fvit", *LOW]
    model = FViT(load_config("mini/detection", opts)).eval()
    model.set_vocabulary("red star, blue ring")
    rpn, box = model.rpn_head, model.roi_head.bbox_head
    exact = [rpn.rpn_cls, rpn.rpn_reg, box.cls_fcs[0], box.fc_reg]
    assert set(types_of(exact, model, IMAGE)) == {torch.float32}
    rest = [rpn.rpn_conv, box.shared_convs, box.shared_fcs[1], box.reg_fcs[0]]
    assert set(types_of(rest, model, IMAGE)) == {torch.bfloat16}


def test_segments_agree():
    exact, trained_low, low = results("panoptic", "mini")
    assert (exact.ids == trained_low.ids).all() and (exact.ids == low.ids).mean() > 0.99
    assert [s.name for s in exact.segments] == [s.name for s in low.segments]
    scores = [[s.score for s in result.segments] for result in (exact, trained_low, low)]
    assert scores[0] == scores[1] != scores[2]
    np.testing.assert_allclose(scores[2], scores[0], atol=0.05)


def test_detections_agree():
    exact, trained_low, low = results("detection", "mini")
    assert (exact.boxes == trained_low.boxes).all()
    assert (exact.scores[:5] != low.scores[:5]).any()
    # Close scores may change places, and of two that overlap the other one may stay: each certain one is looked for.
    overlaps = box_iou(*(torch.from_numpy(given.boxes) for given in (exact, low))).numpy()
    for label, score, overlap in zip(exact.labels, exact.scores, overlaps):
        near = (low.labels == label) & (overlap > 0.5)
        assert score < 0.3 or np.abs(low.scores[near] - score).min() < 0.05
    assert exact.scores[0] > 0.3


def test_regions_agree():
    image = torch.from_numpy(SCENE[:96, :96]).permute(2, 0, 1)
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.2, 0.3, 0.9, 1.0]])
    sample = {"image": image, "boxes": boxes, "crops": image[None, :, :64, :64].repeat(2, 1, 1, 1)}
    found = []
    for opts in ([], TRAINING, LOW):
        model = CLIPSelf(load_config("mini/distillation", ["MODEL.DEVICE", "cpu", *opts])).eval()
        model.set_vocabulary("mini")
        assert model.reading().precision == (torch.bfloat16 if opts is LOW else None)
        (output,) = model([sample], read=("boxes", "crops"))
        found.append(output["scores"])
    for name, scores in found[0].items():
        assert scores.dtype == found[2][name].dtype == torch.float32
        assert torch.equal(scores, found[1][name]) and not torch.equal(scores, found[2][name])
        torch.testing.assert_close(scores, found[2][name], atol=0.01, rtol=0)


def test_the_start_that_a_training_preserves_is_in_the_precision_of_training():
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "mini-cat-seg", *LOW]
    model = CATSeg(load_config("mini/semseg", opts)).eval()
    window = torch.from_numpy(SCENE).permute(2, 0, 1)[None, :, :64, :64]
    model.set_vocabulary("red star, grass")
    assert model.window_logits(window).dtype == torch.float32
    model.training_settings = CATSegTraining(precision=torch.bfloat16)
    assert model.window_logits(window).dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_float16_without_a_gpu_is_refused(monkeypatch, device):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    opts = ["MODEL.DEVICE", device, "TEST.PRECISION", "float16"]
    with pytest.raises(InputError, match=f"MODEL.DEVICE is {device}: take bfloat16, or float32"):
        load_config(None, opts)


def test_what_has_no_effect_is_said(caplog):
    load_config(None, ["MODEL.DEVICE", "cpu", *TRAINING], trains=True)
    assert not caplog.text
    load_config(None, ["MODEL.DEVICE", "cpu", *TRAINING])
    assert "SOLVER.AMP is of training alone, TEST.PRECISION of what follows" in caplog.text
