"""Workloads of every task: ours and plain agree, and operation counts are those of formulas and of torch's counter."""

import pytest
import torch

from bench import report
from bench.case import IMAGE_SIZE, Case
from bench.cat_seg_workload import SemSegWorkload
from bench.detection_workload import DetectionWorkload
from bench.flops import (
    PRODUCTS,
    TowerFlops,
    count_flops,
    counted_by_fvcore,
    text_flops,
    tower_flops,
    window_flops,
)
from bench.measure import Run
from bench.panoptic_workload import PanopticWorkload
from bench.plain_panoptic import plain_masked_attention
from bench.workloads import DenseWorkload, RegionsWorkload, build_runs
from clipself_seg.clip import load_clip, runtime
from clipself_seg.heads.panoptic.clip_branches import MaskedAttention
from clipself_seg.models import FViT
from clipself_seg.models.fvit.fvit_config import InputSettings
from tests.bench.conftest import (
    detection_case,
    panoptic_runs,
    result,
    semseg_case,
    tiny_eva,
    tiny_runs,
)
from tests.small_towers import SMALL as SMALL_TOWERS


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("dense", "dense"),
        ("distill", "step"),
        ("distill", "checkpointed step"),
        ("regions", "scores"),
    ],
)
def test_formulations_agree(task, name):
    runs = tiny_runs(task)
    ours = result(runs, name)
    assert task != "distill" or ours == result(runs, name)  # the weights stay as they are
    plain = result(runs, "plain " + name.removeprefix("checkpointed "))
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_a_tower_with_two_class_tokens_is_measured(known_towers):
    runs = build_runs(Case(task="dense", model="small-TIPSv2", size=56))
    ours, plain = result(runs, "dense"), result(runs, "plain dense")
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    assert count_flops(lambda: result(runs, "dense")) == runs["dense"].flops


def test_plain_samples_hold_the_same_pictures():
    workload = RegionsWorkload(Case("regions", "ViT-Mini-8", size=64))
    (ours,), (plain,), clip = workload.samples, workload.plain_samples, workload.clip
    torch.testing.assert_close(clip.preprocess(ours["image"][None])[0], plain["image"])
    torch.testing.assert_close(clip.preprocess(ours["crops"]), plain["crops"][:13])
    assert torch.equal(ours["masks"], plain["masks"]) and not plain["crops"][13:].any()


def test_pieces_are_as_large_as_asked_for(monkeypatch):
    monkeypatch.setattr(runtime, "CHUNK_ELEMENTS", 2**28)
    build_runs(Case(task="dense", model="ViT-Mini-8", size=64, pieces=100))
    assert runtime.chunk_size(torch.device("meta"), in_cache=1, elements_per_item=10) == 10


@pytest.mark.parametrize("asked", [False, True])
def test_blocks_are_compiled_if_asked_for(asked):
    case = Case(task="dense", model="ViT-Mini-8", size=64, compile=asked)
    assert DenseWorkload(case).clip.visual.compiling is asked


def check_image(runs):
    ours, plain = result(runs, "image"), result(runs, "plain image")
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
    return ours


@pytest.mark.parametrize("classes", [9, 15])
def test_formulations_of_cat_seg_agree(small_cat_seg, classes):
    runs = build_runs(semseg_case(classes=classes))
    image = check_image(runs)
    assert image.shape == (classes, 480, 640)
    assert torch.equal(result(runs, "best class"), image.argmax(dim=0))


@pytest.mark.parametrize("training", [False, True])
def test_operations_are_counted_in_bfloat16_too(small_cat_seg, training):
    runs = build_runs(semseg_case(training=training))
    for name, run in build_runs(semseg_case(training=training, precision="bfloat16")).items():
        assert run.flops == runs[name].flops > 0


def test_training_steps_of_cat_seg_agree(small_cat_seg):
    runs = build_runs(semseg_case(training=True, batch=2))
    step = result(runs, "step")
    assert step == result(runs, "step")  # the weights stay as they are
    assert step == pytest.approx(result(runs, "plain step"), abs=1e-6)
    assert step == pytest.approx(result(runs, "checkpointed step"), abs=1e-6)


@pytest.mark.parametrize("name", [*SMALL_TOWERS, "EVA-Mini-8"])
def test_images_of_every_kind_that_cat_seg_takes_agree(small_cat_seg, known_towers, name):
    workload = SemSegWorkload(semseg_case(model=name, classes=2))
    with torch.no_grad():
        counted = count_flops(lambda: workload.model.texts.embed(workload.model.names))
    assert counted == text_flops(workload.model, torch.device("cpu"))
    check_image(workload.runs())


@pytest.mark.parametrize("name", ["small-SigLIP", "small-TIPSv2"])
def test_operations_of_learning_texts_of_every_kind_are_counted(small_cat_seg, known_towers, name):
    model = SemSegWorkload(semseg_case(model=name, classes=2, training=True)).model
    counted = count_flops(lambda: model.texts.embed(model.names).sum().backward())
    assert counted == text_flops(model, torch.device("cpu"), training=True)


def test_formulations_of_detection_agree(small_detection):
    workload = DetectionWorkload(detection_case(classes=40))
    torch.manual_seed(0)
    setting = workload.setting
    for norm in torch.nn.ModuleList([setting.neck, setting.rpn, setting.heads]).modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    runs = workload.runs()
    for name in ("behind the tower", "image"):
        (ours, masks), (plain, plain_masks) = result(runs, name), result(runs, f"plain {name}")
        assert len(masks) > 5
        for mine, other in zip(ours, plain, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4, msg=name)
        # A probability within the last digits of the threshold falls on either side of it.
        assert (masks != plain_masks).sum() <= 1e-6 * masks.numel(), name


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
        inputs=InputSettings(blocks, 64, (0.0,) * 3, (1.0,) * 3),
    ).eval()
    monkeypatch.setattr(model, "text", lambda classes: text)
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


def test_formulations_of_panoptic_segmentation_agree(small_panoptic):
    runs = panoptic_runs()
    ours, plain = result(runs, "generator"), result(runs, "plain generator")
    assert ours.mask_logits.shape == (1, 12, 32, 48) and (ours.mask_logits > 0).any()
    for mine, other in zip(vars(ours).values(), vars(plain).values()):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    for name, shape in {"masked attention": (12, 128), "dense pooling": (12, 128)}.items():
        ours, plain = result(runs, name), result(runs, f"plain {name}")
        assert ours.shape == shape
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4, msg=name)
    (ids, segments), (plain_ids, plain_segments) = result(runs, "merge"), result(
        runs, "plain merge"
    )
    assert torch.equal(ids, plain_ids) and segments == plain_segments
    assert ids.shape == (128, 192) and 3 < len(segments) <= 12


def test_mask_tokens_of_eva_attend_as_in_the_plain_formulation(small_panoptic):
    workload = PanopticWorkload(Case("panoptic", "ViT-Mini-8", classes=9))
    workload.clip.visual = tiny_eva()
    branch = MaskedAttention(workload.clip)
    ours = branch.embed(workload.image, workload.masks, (128, 192))[0]
    plain = plain_masked_attention(branch, workload.image, workload.masks)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_towers_without_a_class_token_have_no_masked_attention(small_panoptic):
    runs = build_runs(Case("panoptic", "RN-Mini", classes=9))
    assert "dense pooling" in runs and "masked attention" not in runs


def test_memory_of_parts_is_without_what_they_are_given(small_detection, small_panoptic):
    behind, merge = build_runs(detection_case())["behind the tower"], panoptic_runs()["merge"]
    taps, dense = behind.setup()
    for run, given in ((behind, [*taps, dense]), (merge, [merge.setup()])):
        assert run.given == 4 * sum(tensor.numel() for tensor in given)


def test_only_what_is_named_is_measured_beside_its_plain_formulation():
    names = ["image", "plain image", "best class", "step", "plain step"]
    runs = dict.fromkeys(names, Run(print))
    assert [*report.chosen_runs(runs, ("best class",))] == ["plain image", "best class"]
    assert [*report.chosen_runs(runs, ())] == names


# Operations.


def by_formula(tower, mlp: int, dense_side: int, image_side: int) -> TowerFlops:
    """Operations of a transformer whose last block needs the value path alone of dense features, and one query else."""
    width, depth, patch = tower.width, len(tower.blocks), tower.patch_size
    dense, crop = ((side // patch) ** 2 for side in (dense_side, image_side))

    def stem(tokens: int) -> int:
        return 2 * tokens * 3 * patch**2 * width

    def block(tokens: int) -> int:
        return 2 * tokens * (4 * width**2 + mlp) + 4 * tokens**2 * width

    head = 2 * dense * width * tower.embed_dim
    blocks = (depth - 1) * block(1 + dense) + 2 * dense * (2 * width**2 + mlp)
    keys_and_values = 2 * (1 + crop) * 2 * width**2 + 4 * (1 + crop) * width
    class_token = 2 * (2 * width**2 + mlp) + 2 * width * tower.embed_dim
    image = stem(crop) + (depth - 1) * block(1 + crop) + keys_and_values + class_token
    return TowerFlops(stem(dense) + blocks + head, 2 * blocks + head, image)


def test_operations_of_towers_are_those_of_the_formulas():
    openai, eva = load_clip("ViT-Mini-8", None).visual, tiny_eva()
    weights = 2 * openai.blocks[0].mlp.c_fc.weight.numel()
    assert tower_flops(openai, 48, 32) == by_formula(openai, weights, 48, 32)
    weights = 3 * eva.blocks[0].mlp.w1.weight.numel()
    assert tower_flops(eva, 48, 32) == by_formula(eva, weights, 48, 32)


@pytest.mark.parametrize("name", ["ViT-Mini-8", "EVA-Mini-8", "RN-Mini"])
def test_fvcore_counts_the_same_products_and_norms_besides(name):
    tower, images = load_clip(name, None).visual, torch.zeros(1, 3, 64, 64)
    counts = counted_by_fvcore(tower, images)
    assert 2 * sum(counts[name] for name in PRODUCTS) == count_flops(lambda: tower.dense(images))
    assert {*counts} - {*PRODUCTS} <= {"layer_norm"}


def test_operation_counts_of_cat_seg_are_those_of_torch(small_cat_seg):
    words = ["a", "old brick wall", "x y z", "very old tree in the park"]
    model = SemSegWorkload(semseg_case()).model
    model.set_vocabulary(words)
    model.requires_grad_(False)
    views = torch.zeros(2, 3, 384, 384)
    with torch.no_grad():
        counted = count_flops(lambda: model.window_logits(views))
    assert text_flops(model, torch.device("cpu")) + window_flops(model, 2) == counted
    every = SemSegWorkload(semseg_case(classes=847)).model  # "screen" is two of them
    assert window_flops(every, 1) > window_flops(model, 1)


def test_operation_counts_of_a_training_step_are_those_of_torch(small_cat_seg):
    workload = SemSegWorkload(semseg_case(training=True, batch=2))
    step = workload.runs()["step"]
    assert count_flops(lambda: step.call(None)) == step.flops


def test_operation_counts_of_the_generator_are_those_of_torch(small_panoptic):
    generator = panoptic_runs()["generator"]
    assert count_flops(lambda: generator.call(None)) == generator.flops > 0
