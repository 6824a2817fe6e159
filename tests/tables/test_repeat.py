"""Several seeds: means and spreads by hand, finished runs are kept, failed ones are named."""

from __future__ import annotations

import json

import pytest

from clipself_seg.errors import InputError
from clipself_seg.tables import repeat as module
from clipself_seg.tables.repeat import repeat, spread_table
from clipself_seg.tables.runs import make_run
from clipself_seg.tables.store import Store
from tests.tables.worlds import finish

CONFIG = "configs/mini/patches.yaml"
OTHER = "configs/mini/panoptic.yaml"


def write(folder, seed, options=None, **numbers):
    finish(Store(folder), make_run(CONFIG, options or {}, seed=seed), {"val": numbers})


@pytest.fixture
def made(monkeypatch):
    """Runs that would be made: their numbers are 1."""
    made = []

    def run_all(runs, store, *, gpus):
        for run in runs:
            made.append(run)
            finish(store, run, {"val": {"PQ": 1.0}})
        return {}

    monkeypatch.setattr(module, "run_all", run_all)
    return made


def test_mean_and_spread_of_finished_runs(tmp_path):
    write(tmp_path, 0, mIoU=10.0, mACC=1.0)
    write(tmp_path, 5, mIoU=14.0)
    results = repeat([CONFIG], [0, 5], tmp_path)
    assert results[CONFIG] == {
        "val/mIoU": {"mean": 12.0, "spread": pytest.approx(8**0.5), "values": [10.0, 14.0]}
    }
    assert json.loads((tmp_path / "seeds.json").read_text())["seeds"] == [0, 5]
    assert "12.00 +- 2.83" in spread_table(results, ["/mIoU"])
    assert "mIoU" not in spread_table(results, ["/mACC"])


def test_a_run_that_is_missing_is_made_with_its_seed(tmp_path, made):
    write(tmp_path, 0, mIoU=1.0)
    repeat([CONFIG], [0, 1], tmp_path)
    assert [run.seed for run in made] == [1]


def test_other_options_into_the_same_folder_are_other_runs(tmp_path, made):
    for seed in (0, 1):
        write(tmp_path, seed, PQ=30.0)
    results = repeat([CONFIG], [0, 1], tmp_path, ["SOLVER.MAX_ITER", "7"])
    assert results[CONFIG]["val/PQ"]["values"] == [1.0, 1.0]
    assert [run.options[:2] for run in made] == [("SOLVER.MAX_ITER", "7")] * 2
    assert repeat([CONFIG], [0, 1], tmp_path)[CONFIG]["val/PQ"]["mean"] == 30


def test_what_one_configuration_trained_is_evaluated_under_another(tmp_path, made):
    for seed in (0, 1):
        write(tmp_path, seed, PQ=2.0)
    results = repeat([CONFIG], [0, 1], tmp_path, evaluated=[OTHER])
    assert [results[name]["val/PQ"]["mean"] for name in (CONFIG, OTHER)] == [2.0, 1.0]
    trained = make_run(CONFIG, {}, seed=1)
    words = made[1].command(tmp_path)
    assert words[words.index("MODEL.WEIGHTS") + 1] == str(
        tmp_path / trained.name / trained.result_file
    )
    assert "--eval-only" in words and words[words.index("SEED") + 1] == "1"


def test_one_seed_has_no_spread_and_a_failed_run_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="two different seeds"):
        repeat([CONFIG], [3, 3], tmp_path)
    with pytest.raises(InputError, match='"KEY" has no partner'):
        repeat([CONFIG], [3, 4], tmp_path, ["KEY"])
    with pytest.raises(InputError, match=f"{CONFIG} evaluates nothing: give DATASETS.TEST"):
        repeat([CONFIG], [3, 4], tmp_path, ["DATASETS.TEST", "()"])
    monkeypatch.setattr(
        module, "run_all", lambda runs, store, *, gpus: {runs[0].name: "the reason"}
    )
    with pytest.raises(InputError, match="the run .*/patches_seed3-.* failed: the reason"):
        repeat([CONFIG], [3, 4], tmp_path)


@pytest.mark.parametrize("content", ["[" * 99_999, "[1]", '{"results": 3, "provenance": {}}', "{"])
def test_results_that_cannot_be_read_back_are_made_anew(tmp_path, content, made):
    for seed in (0, 1):
        write(tmp_path, seed, PQ=2.0)
    (tmp_path / make_run(CONFIG, {}, seed=0).name / "results.json").write_text(content)
    assert repeat([CONFIG], [0, 1], tmp_path)[CONFIG]["val/PQ"]["values"] == [1.0, 2.0]


def test_a_number_that_is_none_in_one_run_has_no_spread(tmp_path):
    for seed, number in enumerate((1.5, float("nan"))):
        write(tmp_path, seed, PQ=number, AP=1.0)
    assert "nan +- nan" in spread_table(repeat([CONFIG], (0, 1), tmp_path))
