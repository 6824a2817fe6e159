"""Operations of a GPU are counted on a CPU, for every task."""

from __future__ import annotations

import pytest
import torch

from bench.accelerator import ACCELERATOR
from bench.case import Case
from bench.jobs import Job
from bench.launches import Launches, count_all, count_launches, launches_as_text
from clipself_seg.errors import InputError


def test_what_reads_or_writes_values_is_counted_and_views_and_memory_are_not():
    with Launches() as counted:
        there = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).to(ACCELERATOR)
        torch.empty(3, device=ACCELERATOR)
        there.T.flatten()[1:].reshape(3).unsqueeze(0).detach()
        (there @ there).add_(1).sum()
        torch.ones(2) + 1  # on the CPU
    assert counted.operations == {
        "aten._to_copy": 1,
        "aten.clone": 1,
        "aten.mm": 1,
        "aten.add_": 1,
        "aten.sum": 1,
    }


SMALL = {"model": "ViT-Mini-8", "size": 64, "regions": 2, "classes": 2, "threads": 1}
ROWS = {
    "dense": ["dense"],
    "distill": ["checkpointed step"],
    "regions": ["scores"],
    "semseg": ["texts"],
    "panoptic": ["merge"],
    "detection": ["roi pooling"],
}


@pytest.mark.parametrize("task", ROWS)
def test_every_task_is_counted(task, small_cat_seg, small_panoptic, small_detection):
    case = Case(task, only=tuple(ROWS[task]), queries=3, **SMALL)
    results = count_launches(case, lambda line: None)
    text = launches_as_text(results)
    assert results["case"]["device"] == "cpu" and text.startswith(task)
    for name in ROWS[task]:
        numbers = results["launches"][name]
        assert numbers["all"] == sum(numbers["operations"].values()) > 0
        assert f"\n{name} " in text and f"plain {name}" not in text
    assert not hasattr(torch, ACCELERATOR.type)


def test_all_jobs_are_counted_one_after_the_other(monkeypatch):
    tiny = Job("tiny", {"task": "dense", "model": "ViT-Mini-8", "size": 32}, ("dense",))
    monkeypatch.setattr("bench.jobs.JOBS", (tiny,))
    results = count_all({"threads": 1}, ["ti"], lambda line: None)
    assert results["jobs"]["tiny"]["launches"]["dense"]["all"] > 0
    assert launches_as_text(results).startswith("dense: ViT-Mini-8, 32 px")


def test_lower_precision_is_refused():
    with pytest.raises(InputError, match="not in bfloat16"):
        count_launches(Case("dense", precision="bfloat16", **SMALL), print)
