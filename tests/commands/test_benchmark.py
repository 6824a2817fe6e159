"""benchmark: it prints a table, and writes all figures if asked to."""

from __future__ import annotations

import json

import pytest

from bench import command, jobs, measure, report
from tests.benchmark.small import shrink_cat_seg, shrink_detection, shrink_panoptic

TINY = ["--model", "ViT-Mini-8", "--size", "64", "--repeats", "1", "--regions", "5"]
TINY += ["--threads", "1"]


def test_a_quality_benchmark_prints_both(monkeypatch, capsys):
    monkeypatch.setattr(measure, "PEAK_SHAPES", ((64, 64, 64),))
    assert command.main(["pq", "--batch", "1", "--repeats", "1", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    for name in ("PQ in memory", "PQ of files"):
        assert text.count(name) == 3  # ours, the plain one, and how they compare


def test_the_table_of_a_model_is_printed_and_nothing_written(tmp_path, capsys):
    model = ["model", "--model", "ViT-Mini-8", "--size", "64"]
    assert command.main(model) == 0
    assert "visual.transformer.resblocks" in capsys.readouterr().out
    assert command.main([*model, "--json", str(tmp_path / "x.json")]) == 2
    assert "nothing to write" in capsys.readouterr().err and not (tmp_path / "x.json").exists()


def test_all_jobs_share_what_is_asked_for(monkeypatch, tmp_path, capsys):
    given = []
    monkeypatch.setattr(jobs, "run_all", lambda *args: given.append(args) or {"rows": []})
    monkeypatch.setattr(jobs, "table", lambda results: "the table")
    path = tmp_path / "all.json"
    words = ["all", "--repeats", "2", "--threads", "1", "--only", "dense", "--json", str(path)]
    assert command.main(words) == 0
    (common, only, _), text = given[0], capsys.readouterr().out
    assert common["repeats"] == 2 and common["threads"] == 1 and only == ["dense"]
    assert text == "the table\n" and json.loads(path.read_text()) == {"rows": []}


@pytest.mark.parametrize(
    ("task", "name", "more"),
    [
        ("dense", "dense", []),
        ("distill", "step", []),
        ("regions", "scores", []),
        ("semseg", "image", ["--classes", "9"]),
        ("semseg", "step", ["--classes", "9", "--training"]),
        ("panoptic", "masked attention", ["--classes", "9", "--queries", "5"]),
        ("detection", "behind the tower", ["--classes", "9"]),
    ],
)
def test_prints_a_table_and_writes_the_figures(task, name, more, tmp_path, monkeypatch, capsys):
    shrink_cat_seg(monkeypatch)
    shrink_panoptic(monkeypatch)
    shrink_detection(monkeypatch)
    path = tmp_path / "figures.json"
    monkeypatch.setattr(measure, "PEAK_SHAPES", ((64, 64, 64),))
    if task != "dense":  # one task is enough to see that processes of their own are measured
        monkeypatch.setattr(report, "peak_memory", lambda build, case, name: 2**20)
    assert command.main([task, *TINY, *more, "--json", str(path)]) == 0
    figures, text = json.loads(path.read_text()), capsys.readouterr().out
    assert figures["case"]["model"] == "ViT-Mini-8" and figures["provenance"]["torch"]
    assert figures["peak_flops"] > 0
    for run in (name, f"plain {name}"):
        assert run in text
        numbers = figures["runs"][run]
        assert {"seconds", "all_seconds", "images_per_second", "peak_fraction"} <= numbers.keys()
        assert numbers["memory_bytes"] >= 2**20
    assert {"speed", "memory"} <= figures["gains"][name].keys()
    assert ("step_overhead" in figures) == (task == "distill")
    assert ("over_image" in figures) == (task == "panoptic")
    assert ("x a plain image forward" in text) == (task == "panoptic")
    assert ("of_image" in figures) == (task == "detection")
    assert ("memory beyond the tower, of the plain one: 100.0 %" in text) == (task == "detection")
    assert ("checkpointing_memory" in figures) == (name == "step")
    assert "% of peak" in text and "plain / ours" in text


def test_launches_are_counted_in_place_of_times(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.report.matmul_peaks", None)
    path = tmp_path / "launches.json"
    assert command.main(["dense", *TINY, "--launches", "--json", str(path)]) == 0
    figures, text = json.loads(path.read_text()), capsys.readouterr().out
    ours, plain = (figures["launches"][name] for name in ("dense", "plain dense"))
    assert 0 < ours["all"] < plain["all"] and ours["operations"]["aten.addmm"] > 0
    assert figures["case"]["size"] == 64 and "seconds" not in path.read_text()
    assert f"{ours['all']}       {plain['all']}" in text


@pytest.mark.parametrize("arguments", [["all"], ["model"], ["dense", "--launches"]])
def test_compiled_blocks_are_refused_where_nothing_is_timed_or_all_is(arguments, capsys):
    assert command.main([*arguments, "--compile"]) == 2
    assert f"--compile times one task: not {arguments[-1]}" in capsys.readouterr().err
