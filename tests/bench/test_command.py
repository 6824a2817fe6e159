"""The command's tables and files, its jobs, what it measures and counts."""

import dataclasses
import json
import re
from multiprocessing import set_forkserver_preload

import pytest
import torch

from bench import command, jobs, measure, report
from bench.accelerator import ACCELERATOR
from bench.case import Case
from bench.measure import Run, time_in_turn
from clipself_seg.provenance import provenance
from tests.bench.conftest import result
from tests.launches import Launches

TINY = ["--model", "ViT-Mini-8", "--size", "64", "--repeats", "1", "--threads", "1"]


small_models = pytest.mark.usefixtures(
    "quick_peak", "small_cat_seg", "small_panoptic", "small_detection"
)


def test_jobs_that_are_chosen_are_measured_once_for_a_commit_and_a_way(
    monkeypatch, tmp_path, capsys
):
    path, measured = tmp_path / "all.json", []

    def run_benchmark(case, report, lower):
        measured.append(case)
        origin = provenance(device=case.device)
        return {"case": dataclasses.asdict(case), "runs": {}, "provenance": origin}

    monkeypatch.setattr(jobs, "run_benchmark", run_benchmark)
    monkeypatch.setattr(jobs, "table", lambda results: "the table")

    def tasks(*only, repeats=2):
        measured.clear()
        words = ["all", "--json", path, "--repeats", repeats, "--only", *only]
        assert command.main([*map(str, words)]) == 0 and capsys.readouterr().out == "the table\n"
        assert all(case.repeats == repeats for case in measured)
        return [case.task for case in measured]

    assert tasks("CAT-Seg ViT-B/16, 20", "F-ViT") == ["semseg", "detection"]
    assert tasks("ODISE", "F-ViT") == ["panoptic"]
    assert tasks("F-ViT", repeats=3) == ["detection"]
    content = json.loads(path.read_text())
    content["jobs"][jobs.JOBS[-1].label]["provenance"]["commit"] = "another"
    path.write_text(json.dumps(content))
    assert len(content["jobs"]) == 3 and tasks("F-ViT", repeats=3) == ["detection"]


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
        ("all --precision bfloat16", "--precision is for one task, all has its own"),
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


COMMON = {"repeats": 1, "threads": 1, "device": "cpu"}


def small(job):
    sizes = {"model": "ViT-Mini-8", "size": 64, "batch": 1}
    return job._replace(given=dict(job.given) | sizes | {"classes": 9})


@small_models
def test_ratios_are_ours_over_plain_and_bfloat16_over_ours(monkeypatch):
    gib = {"step": 6, "plain step": 8, "checkpointed step": 2}
    monkeypatch.setattr(report, "peak_memory", lambda build, case, name: gib.get(name, 1) * 2**30)
    chosen = [small(job) for job in jobs.JOBS if job.given["task"] in ("distill", "panoptic")]
    monkeypatch.setattr(jobs, "JOBS", chosen)
    results = jobs.run_all(COMMON, (), None, lambda line: None)
    label, runs = chosen[0].label, results[chosen[0].label]["runs"]
    step, checkpointed = jobs.rows_of(label, runs)
    assert [step["job"], checkpointed["job"]] == [f"{label}: step", f"{label}: checkpointed step"]
    assert [step["plain, GiB"], step["ours, GiB"], checkpointed["ours, GiB"]] == [8, 6, 2]
    plain, ours, lower = (runs[f"{of}step"]["seconds"] for of in ("plain ", "", "bfloat16 "))
    assert [step["plain, s"], step["ours, s"], step["bfloat16, s"]] == [plain, ours, lower]
    assert [step["ours / plain"], step["bfloat16 / ours"]] == [ours / plain, lower / ours]
    assert checkpointed["plain, s"] == plain and "memory_bytes" not in runs["bfloat16 step"]
    assert step["official (ours), s"] == "24.5 (16.9)"
    merge = jobs.rows_of(chosen[1].label, results[chosen[1].label]["runs"])[-1]
    assert merge["bfloat16, s"] is merge["% of peak"] is None
    text = jobs.table(results)
    assert f"| {label}: checkpointed step " in text and "GFLOP/s" in text


def test_ours_is_timed_in_bfloat16_too_if_asked_for(monkeypatch):
    runs = {}
    monkeypatch.setattr(report, "time_in_turn", lambda timed, *_: runs.update(timed) or {})
    case = Case("dense", "ViT-Mini-8", size=64, threads=1, repeats=1)
    report.run_benchmark(case, lambda line: None, lower=True)
    assert [*runs] == ["dense", "plain dense", "bfloat16 dense"]
    exact, rough = (result(runs, name).float() for name in ("dense", "bfloat16 dense"))
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.05, rtol=0)


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
