"""The benchmark: both formulations agree, its operation counts are torch's, its output has its keys."""

from __future__ import annotations

import json
import sys

import benchmark
import pytest
import torch

from clipself_seg.clip import load_clip
from clipself_seg.clip.eva import EvaTransformer
from clipself_seg.clip.tower import train_last_blocks
from clipself_seg.engine.benchmark import measure, report
from clipself_seg.engine.benchmark.case import Case
from clipself_seg.engine.benchmark.flops import count_tower_flops, tower_flops
from clipself_seg.engine.benchmark.workloads import build_runs
from clipself_seg.errors import InputError

TINY = ["--model", "ViT-Mini-8", "--size", "64", "--repeats", "1", "--regions", "5"]


def tiny_runs(task, **more):
    return build_runs(Case(task=task, model="ViT-Mini-8", size=64, regions=5, batch=2, **more))


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


@pytest.mark.parametrize("task", ["dense", "distill", "regions"])
def test_prints_a_table_and_writes_the_figures(task, tmp_path, monkeypatch, capsys):
    path = tmp_path / "figures.json"
    monkeypatch.setattr(measure, "PEAK_SHAPES", ((64, 64, 64),))
    if task != "dense":  # one task is enough to see that processes of their own are measured
        monkeypatch.setattr(report, "peak_memory", lambda build, case, name: 2**20)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", task, *TINY, "--json", str(path)])
    assert benchmark.main() == 0
    figures, text = json.loads(path.read_text()), capsys.readouterr().out
    assert figures["case"]["model"] == "ViT-Mini-8" and figures["provenance"]["torch"]
    assert figures["peak_flops"] > 0
    name = report.COMPUTED[task][0]
    for run in (name, f"plain {name}"):
        assert run in text
        found = figures["runs"][run]
        assert {"seconds", "all_seconds", "images_per_second", "peak_fraction"} <= found.keys()
        assert found["memory_bytes"] >= 2**20
    assert {"speed", "memory"} <= figures["gains"][name].keys()
    assert {"step_overhead", "checkpointing_memory"} <= figures.keys() or task != "distill"
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
