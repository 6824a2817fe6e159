"""Panoptic quality: panopticapi's in memory and from files, and measured alone if named."""

from __future__ import annotations

import dataclasses

import pytest

from bench import measure, report
from bench.case import Case
from bench.pq_workload import DECODED
from bench.workloads import build_runs
from clipself_seg.errors import InputError
from tests.benchmark.small import result


def test_panoptic_quality_is_panopticapis_in_memory_and_from_files():
    runs = build_runs(Case("pq", "no model", batch=3))
    qualities = [result(runs, name) for name in runs if name != DECODED]
    assert len(set(qualities)) == 1 and 0 < qualities[0] < 100


def test_time_of_files_is_compared_with_their_decoding(monkeypatch):
    monkeypatch.setattr(measure, "PEAK_SHAPES", ((64, 64, 64),))
    only = ("PQ of files", DECODED)
    found = report.run_benchmark(
        Case("pq", "no model", batch=1, repeats=1, threads=1, only=only), print
    )
    seconds, decoded = (found["runs"][name]["seconds"] for name in only)
    assert found["over_decoding"] == seconds / decoded
    assert f"{seconds / decoded:.2f} x the decoding of their PNGs" in report.as_text(found)


def test_measures_only_what_is_named_beside_its_plain_formulation(monkeypatch):
    monkeypatch.setattr(measure, "PEAK_SHAPES", ((64, 64, 64),))
    case = Case("pq", "no model", batch=1, repeats=1, threads=1, only=("PQ of files",))
    assert list(report.run_benchmark(case, print)["runs"]) == ["PQ of files", "plain PQ of files"]
    with pytest.raises(InputError, match='did you mean "PQ of files"'):
        report.run_benchmark(dataclasses.replace(case, only=("PQ of file",)), print)
