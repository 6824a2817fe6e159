"""Features, distillation and regions: both formulations agree."""

from __future__ import annotations

import pytest
import torch

from bench.case import Case
from bench.workloads import DenseWorkload, build_runs
from clipself_seg.clip import load_clip
from clipself_seg.errors import InputError
from clipself_seg.tables.flops import count_flops
from tests.benchmark.small import result, tiny_runs


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


def test_a_tower_with_two_class_tokens_is_measured(known_towers):
    runs = build_runs(Case(task="dense", model="small-TIPSv2", size=56))
    ours, plain = result(runs, "dense"), result(runs, "plain dense")
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    assert count_flops(lambda: result(runs, "dense")) == runs["dense"].flops


def test_plain_samples_hold_the_same_pictures():
    runs, clip = tiny_runs("regions"), load_clip("ViT-Mini-8", None)
    ours, plain = result(runs, "samples")[0], result(runs, "plain samples")[0]
    torch.testing.assert_close(clip.preprocess(ours["image"][None])[0], plain["image"])
    torch.testing.assert_close(clip.preprocess(ours["crops"]), plain["crops"][:5])
    assert torch.equal(ours["masks"], plain["masks"]) and not plain["crops"][5:].any()


def test_samples_from_shards_are_those_of_a_training():
    run = tiny_runs("distill")["samples from shards"]
    first, second = run.call(run.setup()), run.call(run.setup())
    assert [len(batch) for batch in (first, second)] == [2, 2]
    assert first[0]["image"].shape == (3, 64, 64) and len(first[0]["boxes"]) <= 5
    assert first[0]["file_name"] != first[1]["file_name"]


def test_timed_steps_leave_the_weights_as_they_are():
    runs = tiny_runs("distill")
    assert result(runs, "step") == result(runs, "step")


def test_autocast_changes_the_precision_and_not_the_meaning():
    exact = result(tiny_runs("dense"), "dense")
    rough = result(tiny_runs("dense", precision="bfloat16"), "dense")
    assert not torch.equal(exact, rough.float())
    torch.testing.assert_close(exact, rough.float(), atol=0.05, rtol=0)


def test_a_side_that_is_no_multiple_of_the_patches_is_refused():
    with pytest.raises(InputError, match="60"):
        build_runs(Case(task="dense", model="ViT-Mini-8", size=60))


def test_blocks_are_compiled_if_asked_for_and_where_the_workload_can():
    for asked in (False, True):
        case = Case(task="dense", model="ViT-Mini-8", size=64, compile=asked)
        assert DenseWorkload(case).clip.visual.compiling is asked
    with pytest.raises(InputError, match="--compile is for dense, .* not for panoptic"):
        Case(task="panoptic", model="ViT-Mini-8", compile=True)


def test_a_case_without_a_timed_call_is_refused():
    with pytest.raises(InputError, match="repeats"):
        Case(task="dense", model="ViT-Mini-8", repeats=0)
