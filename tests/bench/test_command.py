"""The command's tables and files, its jobs, what it measures and counts."""

import json
import re
from multiprocessing import set_forkserver_preload

import pytest
import torch

from bench import command, jobs, measure, report
from bench.accelerator import ACCELERATOR
from bench.measure import Run, time_in_turn
from tests.launches import Launches

TINY = ["--model", "ViT-Mini-8", "--size", "64", "--repeats", "1", "--threads", "1"]


small_models = pytest.mark.usefixtures(
    "quick_peak", "small_cat_seg", "small_panoptic", "small_detection"
)


def test_jobs_are_chosen_by_their_first_words_and_share_what_is_asked_for(
    monkeypatch, tmp_path, capsys
):
    measured = []
    monkeypatch.setattr(
        jobs, "run_benchmark", lambda case, report: measured.append(case) or {"runs": {}}
    )
    monkeypatch.setattr(jobs, "rows_of", lambda *of: [])
    monkeypatch.setattr(jobs, "table", lambda results: "the table")
    path = tmp_path / "all.json"
    words = ["all", "--repeats", "2", "--only", "CAT-Seg ViT-B/16, 20", "F-ViT", "--json", path]
    assert command.main([*map(str, words)]) == 0
    assert [(case.task, case.repeats) for case in measured] == [("semseg", 2), ("detection", 2)]
    assert (
        capsys.readouterr().out == "the table\n" and len(json.loads(path.read_text())["jobs"]) == 2
    )


@small_models
@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("task", "name", "more"),
    [
        ("dense", "dense", []),
        ("distill", "step", []),
        ("regions", "scores", []),
        ("semseg", "image", ["--classes", "9"]),
        ("semseg", "step", ["--classes", "9", "--training"]),
        ("panoptic", "masked attention", ["--classes", "9"]),
        ("detection", "behind the tower", ["--classes", "9"]),
    ],
)
def test_prints_a_table_and_writes_the_figures(task, name, more, tmp_path, monkeypatch, capsys):
    path = tmp_path / "figures.json"
    set_forkserver_preload(["bench.report"])
    if task != "dense":  # one task is enough to see that processes of their own are measured
        monkeypatch.setattr(report, "peak_memory", lambda build, case, name: 2**20)
    assert command.main([task, *TINY, *more, "--json", str(path)]) == 0
    figures, text = json.loads(path.read_text()), capsys.readouterr().out
    assert figures["case"]["model"] == "ViT-Mini-8" and figures["provenance"]["torch"]
    assert figures["peak_flops"] > 0
    for run in (name, f"plain {name}"):
        numbers = figures["runs"][run]
        assert {"seconds", "all_seconds", "peak_fraction"} <= numbers.keys()
        assert numbers["memory_bytes"] >= 2**20
    assert f"{task}, ViT-Mini-8: {name} " in text and "% of peak" in text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("all --compile", "--compile times one task: not all"),
        ("panoptic --compile", "--compile is for dense, .* not for panoptic"),
        ("dense --repeats 0", "repeats 0"),
        ("dense --small", "--small is for first-hour, not for dense"),
        ("semseg --model ViT-Mini-8 --classes 848", "847"),
        ("semseg --model ConvNeXt-Mini-32", "--model ConvNeXt-Mini-32: CAT-Seg needs a ViT"),
        ("detection --model RN50", "--model is RN50"),
        ("detection --model ViT-Mini-8 --size 60", "60"),
        ("dense --model ViT-Mini-8 --size 64 --only dens", 'did you mean "dense"'),
        ("all --only CATSeg", '"CATSeg" begins no job'),
    ],
)
def test_what_cannot_be_measured_is_refused(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main([word.replace("_", " ") for word in words.split()]) == 2
    assert re.search(named, capsys.readouterr().err) and not list(tmp_path.iterdir())


COMMON = {"repeats": 1, "threads": 1, "device": "cpu", "precision": "float32"}


def small(job):
    sizes = {"model": "ViT-Mini-8", "size": 64, "batch": 1}
    return job._replace(given=dict(job.given) | sizes | {"classes": 9})


@small_models
def test_ratios_are_ours_over_plain_and_the_two_parts_of_odise_are_added(monkeypatch):
    bytes_ = {"step": 6, "plain step": 8, "checkpointed step": 2}
    monkeypatch.setattr(report, "peak_memory", lambda build, case, name: bytes_.get(name, 2**30))
    chosen = [small(job) for job in jobs.JOBS if job.given["task"] in ("distill", "panoptic")]
    monkeypatch.setattr(jobs, "JOBS", chosen)
    results = jobs.run_all(COMMON, (), lambda line: None)
    rows = {row["row"]: row for row in results["rows"]}
    assert rows["step"]["memory"] == 0.75 and rows["checkpointed step"]["memory"] == 0.25
    assert rows["step"]["time"] == rows["step"]["seconds"] / rows["step"]["plain_seconds"]
    assert rows["checkpointed step"]["plain_seconds"] == rows["step"]["plain_seconds"]
    both, parts = rows["generator and masked attention"], [rows[name] for name in jobs.GENERATOR]
    assert both["seconds"] == sum(part["seconds"] for part in parts)
    assert both["plain_seconds"] == sum(part["plain_seconds"] for part in parts)
    text = jobs.table(results)
    assert all(row["row"] in text for row in results["rows"])
    assert "GFLOP/s" in text and results["jobs"][chosen[0].label]["instructions"] in text


def test_what_reads_or_writes_values_is_counted_and_views_and_memory_are_not():
    with Launches() as counted:
        there = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).to(ACCELERATOR)
        torch.empty(3, device=ACCELERATOR)
        there.T.flatten()[1:].reshape(3).unsqueeze(0).detach()
        (there @ there).add_(1).sum()
        torch.ones(2) + 1  # on the CPU
    names = ("_to_copy", "clone", "mm", "add_", "sum")
    assert counted.operations == {f"aten.{name}": 1 for name in names}


def test_the_plain_formulation_has_the_allocator_as_torch_finds_it(monkeypatch):
    said = []
    monkeypatch.setattr(measure, "keep_freed_memory", lambda device: said.append(f"keep, {device}"))
    monkeypatch.setattr(measure, "set_thresholds", lambda *_: said.append("hand back"))
    runs = {name: Run(lambda _, name=name: said.append(name)) for name in ("x", "plain x", "y")}
    time_in_turn(runs, torch.device("cpu"), 1, lambda line: None)
    plain = ["hand back", "plain x", "keep, cpu", "y"]
    # "x" and "y" find their memory when they are timed.
    assert said == ["keep, cpu", "x", *plain, "x", "x", *plain, "y"]
