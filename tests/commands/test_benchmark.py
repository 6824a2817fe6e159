"""The benchmark: both formulations agree, its operation counts are torch's, its output has its keys."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from clipself_seg.benchmark import (
    cat_seg_workload,
    flops_cat_seg,
    measure,
    panoptic_workload,
    report,
)
from clipself_seg.benchmark.case import Case
from clipself_seg.benchmark.cat_seg_workload import SemSegWorkload
from clipself_seg.benchmark.flops import count_tower_flops, tower_flops
from clipself_seg.benchmark.panoptic_workload import PanopticWorkload
from clipself_seg.benchmark.plain_panoptic import plain_masked_attention
from clipself_seg.benchmark.workloads import build_runs
from clipself_seg.clip import load_clip
from clipself_seg.clip.eva import EvaTransformer
from clipself_seg.clip.tower import train_last_blocks
from clipself_seg.commands import benchmark
from clipself_seg.errors import InputError
from clipself_seg.heads.cat_seg.cost_aggregator import AggregatorSizes
from clipself_seg.heads.panoptic import clip_branches
from clipself_seg.heads.panoptic.clip_branches import MaskedAttention
from clipself_seg.heads.panoptic.mask_generator import GeneratorSizes

TINY = ["--model", "ViT-Mini-8", "--size", "64", "--repeats", "1", "--regions", "5"]


def tiny_runs(task, **more):
    return build_runs(Case(task=task, model="ViT-Mini-8", size=64, regions=5, batch=2, **more))


SMALL = AggregatorSizes(
    hidden=32,
    grid=(8, 8),
    window=4,
    pad_len=12,
    decoder_dims=(32, 16),
    decoder_guidance_projected=(8, 4),
)


@pytest.fixture
def small_cat_seg(monkeypatch):
    monkeypatch.setattr(cat_seg_workload, "SIZES", SMALL)


@pytest.fixture
def small_panoptic(monkeypatch):
    sizes = GeneratorSizes(
        width=32, heads=4, encoder_layers=1, encoder_hidden=32, decoder_layers=4, decoder_hidden=32
    )
    small = {"IMAGE": (120, 156), "CANVAS": (128, 192), "SIZES": sizes, "CHANNELS": 32, "CELLS": 8}
    for name, value in small.items():
        monkeypatch.setattr(panoptic_workload, name, value)
    monkeypatch.setattr(clip_branches, "CELLS", 8)


def panoptic_runs(**more):
    return build_runs(Case("panoptic", "ViT-Mini-8", **{"classes": 9, "queries": 12, **more}))


def semseg_case(**more):
    return Case(task="semseg", model="ViT-Mini-8", **{"classes": 9, "batch": 1, **more})


def result(runs, name):
    return runs[name].call(runs[name].setup())


def tiny_eva():
    shape = {"width": 48, "layers": 3, "heads": 3, "hidden": 128, "embed_dim": 32}
    return EvaTransformer(image_size=32, patch_size=8, **shape)


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
    plain = result(runs, "plain " + name.removeprefix("checkpointed "))
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", [9, 15])
def test_formulations_of_cat_seg_agree(small_cat_seg, classes):
    runs = build_runs(semseg_case(classes=classes))
    image = result(runs, "image")
    assert image.shape == (classes, 480, 640)
    for name in ("image", "texts", "merge"):
        ours, plain = result(runs, name), result(runs, f"plain {name}")
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
    assert torch.equal(result(runs, "best class"), image.argmax(dim=0))
    ours, plain = result(runs, "features"), result(runs, "plain features")
    for mine, other in zip((ours[name] for name in ("dense", "block0", "block1")), plain):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=0)
    ours, plain = result(runs, "aggregator"), result(runs, "plain aggregator")
    ours = torch.stack([view.all_classes(classes) for view in ours])
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)


def test_training_steps_of_cat_seg_agree(small_cat_seg):
    runs = build_runs(semseg_case(training=True, batch=2))
    step = result(runs, "step")
    assert step == result(runs, "step")  # the weights stay as they are
    assert step == pytest.approx(result(runs, "plain step"), abs=1e-6)
    assert step == pytest.approx(result(runs, "checkpointed step"), abs=1e-6)


def test_operation_counts_of_cat_seg_are_those_of_torch(small_cat_seg):
    words = ["a", "old brick wall", "x y z", "very old tree in the park"]
    model = SemSegWorkload(semseg_case()).model
    model.set_vocabulary(words)
    model.requires_grad_(False)
    views = torch.zeros(2, 3, 384, 384)
    with torch.no_grad():
        counted = flops_cat_seg.count_flops(lambda: model.window_logits(views))
    parts = [flops_cat_seg.feature_flops, flops_cat_seg.upsample_flops]
    parts += [flops_cat_seg.aggregator_flops]
    assert flops_cat_seg.text_flops(model) + sum(part(model, 2) for part in parts) == counted


def test_operation_counts_of_a_training_step_are_those_of_torch(small_cat_seg):
    workload = SemSegWorkload(semseg_case(training=True, batch=2))
    step = workload.runs()["step"]
    assert flops_cat_seg.count_flops(lambda: step.call(None)) == step.flops


def test_formulations_of_panoptic_segmentation_agree(small_panoptic):
    runs = panoptic_runs()
    ours, plain = result(runs, "generator"), result(runs, "plain generator")
    assert ours.mask_logits.shape == (1, 12, 32, 48) and (ours.mask_logits > 0).any()
    for mine, other in zip(vars(ours).values(), vars(plain).values()):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    shapes = {"masked attention": (12, 128), "dense pooling": (12, 128), "fusion": (12, 10)}
    for name, shape in {**shapes, "masks": (12, 480, 640)}.items():
        ours, plain = result(runs, name), result(runs, f"plain {name}")
        assert ours.shape == shape
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4, msg=name)
    (ids, segments), (plain_ids, plain_segments) = result(runs, "merge"), result(
        runs, "plain merge"
    )
    assert torch.equal(ids, plain_ids) and segments == plain_segments
    assert ids.shape == (128, 192) and 3 < len(segments) <= 12


def test_panoptic_quality_is_panopticapis_in_memory_and_from_files():
    runs = build_runs(Case("pq", "no model", batch=3))
    found = [result(runs, name) for name in runs]
    assert len(set(found)) == 1 and 0 < found[0] < 100


def test_a_quality_benchmark_prints_both(monkeypatch, capsys):
    monkeypatch.setattr(measure, "PEAK_SHAPES", ((64, 64, 64),))
    assert benchmark.main(["pq", "--batch", "1", "--repeats", "1", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    for name in ("PQ in memory", "PQ of files"):
        assert text.count(name) == 3  # ours, the plain one, and how they compare


def test_measures_only_what_is_named_beside_its_plain_formulation(monkeypatch):
    monkeypatch.setattr(measure, "PEAK_SHAPES", ((64, 64, 64),))
    case = Case("pq", "no model", batch=1, repeats=1, threads=1, only=("PQ of files",))
    assert list(report.run_benchmark(case, print)["runs"]) == ["PQ of files", "plain PQ of files"]
    with pytest.raises(InputError, match='did you mean "PQ of files"'):
        report.run_benchmark(dataclasses.replace(case, only=("PQ of file",)), print)


def test_operation_counts_of_the_generator_are_those_of_torch(small_panoptic):
    generator = panoptic_runs()["generator"]
    assert flops_cat_seg.count_flops(lambda: generator.call(None)) == generator.flops


def test_mask_tokens_of_eva_attend_as_observers_do(small_panoptic):
    workload = PanopticWorkload(Case("panoptic", "ViT-Mini-8", classes=9, queries=5))
    workload.clip.visual = tiny_eva()
    branch = MaskedAttention(workload.clip)
    observed = branch.embed(workload.image, workload.masks, (128, 192))[0]
    full = plain_masked_attention(branch, workload.image, workload.masks)
    torch.testing.assert_close(observed, full, atol=1e-5, rtol=1e-4)


def test_towers_without_a_class_token_have_no_masked_attention(small_panoptic):
    runs = build_runs(Case("panoptic", "RN50", classes=9, queries=5))
    assert (
        "dense pooling" in runs and not {"masked attention", "image", "large image"} & runs.keys()
    )


def test_memory_of_the_merge_is_beside_its_masks(small_panoptic):
    runs = panoptic_runs(queries=None)
    for name in ("merge", "plain merge"):
        masks = runs[name].setup()
        assert len(masks) == 250 and runs[name].given == masks.numel() * masks.element_size()


def test_plain_samples_hold_the_same_pictures():
    runs, clip = tiny_runs("regions"), load_clip("ViT-Mini-8", None)
    ours, plain = result(runs, "samples")[0], result(runs, "plain samples")[0]
    torch.testing.assert_close(clip.preprocess(ours["image"][None])[0], plain["image"])
    torch.testing.assert_close(clip.preprocess(ours["crops"]), plain["crops"][:5])
    assert torch.equal(ours["masks"], plain["masks"]) and not plain["crops"][5:].any()


def test_timed_steps_leave_the_weights_as_they_are():
    runs = tiny_runs("distill")
    assert result(runs, "step") == result(runs, "step")


@pytest.mark.parametrize("kind", ["OpenAI", "EVA"])
def test_operation_counts_are_those_of_torch(kind):
    tower = load_clip("ViT-Mini-8", None).visual if kind == "OpenAI" else tiny_eva()
    train_last_blocks(tower, -1)
    counted = count_tower_flops(tower, torch.zeros(1, 3, 48, 48), torch.zeros(1, 3, 32, 32))
    assert tuple(tower_flops(tower, 48, 32)) == counted


def test_operations_of_a_resnet_are_counted_without_memory():
    found = tower_flops(load_clip("RN50", None).visual, 224, 224)
    # 4.1 G multiply-adds of a ResNet-50, and those of CLIP's wider stem and its pool.
    assert 9e9 < found.dense < 13e9
    assert 1.5 * found.dense < found.dense_backward < 2 * found.dense


@pytest.mark.parametrize(
    ("task", "name", "more"),
    [
        ("dense", "dense", []),
        ("distill", "step", []),
        ("regions", "scores", []),
        ("semseg", "image", ["--classes", "9"]),
        ("semseg", "step", ["--classes", "9", "--training"]),
        ("panoptic", "masked attention", ["--classes", "9", "--queries", "5"]),
    ],
)
def test_prints_a_table_and_writes_the_figures(
    task, name, more, small_cat_seg, small_panoptic, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "figures.json"
    monkeypatch.setattr(measure, "PEAK_SHAPES", ((64, 64, 64),))
    if task != "dense":  # one task is enough to see that processes of their own are measured
        monkeypatch.setattr(report, "peak_memory", lambda build, case, name: 2**20)
    assert benchmark.main([task, *TINY, *more, "--json", str(path)]) == 0
    figures, text = json.loads(path.read_text()), capsys.readouterr().out
    assert figures["case"]["model"] == "ViT-Mini-8" and figures["provenance"]["torch"]
    assert figures["peak_flops"] > 0
    for run in (name, f"plain {name}"):
        assert run in text
        found = figures["runs"][run]
        assert {"seconds", "all_seconds", "images_per_second", "peak_fraction"} <= found.keys()
        assert found["memory_bytes"] >= 2**20
    assert {"speed", "memory"} <= figures["gains"][name].keys()
    assert ("step_overhead" in figures) == (task == "distill")
    assert ("over_image" in figures) == (task == "panoptic")
    assert ("x a plain image forward" in text) == (task == "panoptic")
    assert ("checkpointing_memory" in figures) == (name == "step")
    assert "% of peak" in text and "plain / ours" in text


def test_autocast_changes_the_precision_and_not_the_meaning():
    exact = result(tiny_runs("dense"), "dense")
    rough = result(tiny_runs("dense", precision="bfloat16"), "dense")
    assert not torch.equal(exact, rough.float())
    torch.testing.assert_close(exact, rough.float(), atol=0.05, rtol=0)


def test_refuses_what_cannot_be_measured():
    with pytest.raises(InputError, match="60"):
        build_runs(Case(task="dense", model="ViT-Mini-8", size=60))
    with pytest.raises(InputError, match="repeats"):
        Case(task="dense", model="ViT-Mini-8", repeats=0)
    with pytest.raises(InputError, match="847"):
        build_runs(semseg_case(classes=848))
    with pytest.raises(InputError, match="847"):
        panoptic_runs(classes=848)
    with pytest.raises(InputError, match="queries 0"):
        panoptic_runs(queries=0)
    with pytest.raises(InputError, match="ViT-Mini-8"):
        build_runs(Case("panoptic", "ViT-Mini-9"))
