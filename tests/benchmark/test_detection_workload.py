"""Detection: both formulations agree, piece by piece and in whole, and an image is what the model makes of it."""

from __future__ import annotations

import pytest
import torch

from bench.case import IMAGE_SIZE
from bench.detection_workload import DetectionWorkload, of_image
from bench.workloads import build_runs
from clipself_seg.errors import InputError
from clipself_seg.models import FViT
from tests.benchmark.small import detection_case, result

PIECES = ["neck", "rpn head", "roi pooling", "box head", "clip scores"]


def flat(results):
    """The tensors of nested tuples and lists."""
    if isinstance(results, torch.Tensor):
        return [results]
    return [tensor for part in results if part is not None for tensor in flat(part)]


@pytest.mark.parametrize(("kind", "classes"), [("ov_coco", 9), ("ov_lvis", 40)])
def test_formulations_of_detection_agree(small_detection, kind, classes):
    workload = DetectionWorkload(detection_case(kind=kind, classes=classes))
    torch.manual_seed(0)
    setting = workload.setting
    for norm in torch.nn.ModuleList([setting.neck, setting.rpn, setting.heads]).modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    runs = workload.runs()
    for name in [*PIECES, *(["mask head"] if kind == "ov_lvis" else [])]:
        ours, plain = flat(result(runs, name)), flat(result(runs, f"plain {name}"))
        for mine, other in zip(ours, plain, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4, msg=name)
    for name in ["proposals", "detections", *(["pasting"] if kind == "ov_lvis" else [])]:
        ours, plain = flat(result(runs, name)), flat(result(runs, f"plain {name}"))
        assert len(ours[0]) > 5
        for mine, other in zip(ours, plain, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5, msg=name)


def test_an_image_is_what_the_model_makes_of_it(small_detection, monkeypatch):
    workload = DetectionWorkload(detection_case())
    runs = workload.runs()
    (ours, masks), (plain, plain_masks) = result(runs, "image"), result(runs, "plain image")
    resizers, neck, rpn, heads, _, text, seen, size, original = workload.setting
    blocks = [int(name[5:]) for name in workload.taps]
    model = FViT(
        neck=neck,
        rpn_head=rpn,
        roi_head=heads,
        clip=workload.clip,
        backbone=resizers,
        blocks=blocks,
        side=64,
        pixels=((0.0,) * 3, (1.0,) * 3),
    ).eval()
    monkeypatch.setattr(model, "text", lambda: text)
    model.set_vocabulary([str(label) for label in range(len(seen))], seen.numpy())
    image = workload.images[0, :, : size[0]]
    sample = {"image": image, "height": IMAGE_SIZE[0], "width": IMAGE_SIZE[1]}
    instances = model([sample])[0]["instances"]
    assert original == IMAGE_SIZE and 5 < len(instances) <= 20
    assert torch.equal(instances.pred_boxes.tensor, ours.boxes)
    assert torch.equal(instances.scores, ours.scores)
    assert torch.equal(instances.pred_classes, ours.labels)
    assert torch.equal(instances.pred_masks, masks)
    torch.testing.assert_close(ours.scores, plain.scores, atol=1e-5, rtol=1e-4)
    assert masks.shape == plain_masks.shape


def test_memory_behind_the_tower_is_without_the_taps(small_detection):
    run = build_runs(detection_case())["behind the tower"]
    taps, dense = run.setup()
    assert run.given == 4 * sum(tensor.numel() for tensor in [*taps, dense])


def test_what_is_said_of_an_image_needs_its_parts():
    seconds = dict.fromkeys(("tower", "neck", "rpn head", "box head"), 2.0)
    seconds |= dict.fromkeys(("proposals", "roi pooling", "clip scores", "detections"), 0.5)
    figures = {name: {"seconds": taken} for name, taken in seconds.items()}
    assert of_image(figures) == {"others": 0.2}
    figures = {"image": {"seconds": 3.0}, "plain image": {"seconds": 4.0}}
    assert of_image(figures) == {"time": 0.75}


def test_refuses_what_is_no_vit_and_sizes_that_do_not_fit():
    with pytest.raises(InputError, match="--model is RN50"):
        build_runs(detection_case(model="RN50"))
    with pytest.raises(InputError, match="60"):
        build_runs(detection_case(size=60))
