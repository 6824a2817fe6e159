"""All jobs in one run: rows, ratios and the table, on jobs made small."""

from __future__ import annotations

import pytest

from bench import jobs, measure, report
from bench.workloads import build_runs
from clipself_seg.errors import InputError
from tests.benchmark.small import shrink_panoptic

COMMON = {"repeats": 1, "threads": 1, "device": "cpu", "precision": "float32"}


def small(job):
    sizes = {"model": "ViT-Mini-8", "size": 64, "regions": 5, "batch": 1}
    return job._replace(given=dict(job.given) | sizes | {"classes": 9, "queries": 5})


def test_every_row_is_measured_somewhere_beside_a_plain_one():
    for job in jobs.JOBS:
        if job.given["task"] in ("dense", "distill", "regions"):
            names = build_runs(small(job).case(COMMON)).keys()
            assert {*job.rows, *map(jobs._plain_of, job.rows)} <= names


def test_ratios_are_ours_over_plain_and_the_two_parts_of_odise_are_added(monkeypatch, capsys):
    shrink_panoptic(monkeypatch)
    monkeypatch.setattr(measure, "PEAK_SHAPES", ((64, 64, 64),))
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


def test_jobs_are_chosen_by_their_first_words(monkeypatch):
    measured = []
    monkeypatch.setattr(
        jobs, "run_benchmark", lambda case, report: measured.append(case) or {"runs": {}}
    )
    monkeypatch.setattr(jobs, "_rows", lambda job, runs: [])
    with pytest.raises(InputError, match='"CATSeg" begins no job'):
        jobs.run_all(COMMON, ["CATSeg"], lambda line: None)
    jobs.run_all(COMMON, ["CAT-Seg ViT-B/16, 20", "panoptic"], lambda line: None)
    assert [case.task for case in measured] == ["semseg", "pq"]
