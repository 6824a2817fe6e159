"""What counts as finished, in the folder of a run and among what is kept."""

from __future__ import annotations

import dataclasses
import json

import pytest

from clipself_seg.tables.runs import make_run
from clipself_seg.tables.store import Store
from tests.tables.worlds import finish

NUMBERS = {"mini_val": {"160": {"boxes.thing.top1": 20.0, "of no class": float("nan")}}}


def run_of(seed=0):
    return make_run("configs/mini/patches.yaml", {}, seed=seed)


def test_a_finished_run_is_kept_small_and_counts_without_its_folder(tmp_path):
    store, run = Store(tmp_path / "runs", tmp_path / "kept"), run_of()
    assert store.record(run) is None and not store.has_weights(run)
    finish(store, run, NUMBERS)
    store.end(run, 30.0)
    assert store.has_weights(run) and store.record(run)["minutes"] == 2
    clone = Store(tmp_path / "elsewhere", tmp_path / "kept")
    assert clone.record(run)["results"]["mini_val"]["160"]["boxes.thing.top1"] == 20
    assert not clone.has_weights(run) and clone.record(run_of(1)) is None
    assert (tmp_path / "kept" / f"{run.name}.json").stat().st_size < 3000


@pytest.mark.parametrize(
    "content",
    [
        {"results": {"a": {"x": 1.0}}, "provenance": {"not evaluated": ["b"]}},
        {"results": {"a": {"x": float("inf"), "y": 1}}, "provenance": {}},
        {"results": {"a": {"x": float("nan")}}, "provenance": {}},
        {"results": {"a": {"x": 10**400}}, "provenance": {}},
        {"results": {}, "provenance": {}},
        {"results": [], "provenance": {}},
        [],
    ],
)
def test_results_that_are_not_whole_do_not_count(tmp_path, content):
    store, run = Store(tmp_path), run_of()
    finish(store, run, NUMBERS)
    (tmp_path / run.name / "results.json").write_text(json.dumps(content))
    assert Store(tmp_path).record(run) is None


def test_a_run_from_before_a_default_changed_is_made_anew(tmp_path):
    store, run = Store(tmp_path / "runs", tmp_path / "kept"), run_of()
    finish(store, run, NUMBERS)
    for folder in (tmp_path / "runs", tmp_path / "kept"):
        (path,) = folder.glob("defaults-*.json")
        defaults = json.loads(path.read_text())
        # A key that is new since, or gone, changes nothing.
        defaults["MODEL.CLIP.NEW"] = defaults.pop("TEST.REGIONS.MASK_RESIZE")
        path.write_text(json.dumps(defaults))
        assert Store(tmp_path / "runs", tmp_path / "kept").record(run) is not None
        path.write_text(json.dumps(defaults | {"INPUT.REGIONS.GRID_PAIRS": "all"}))
    again = Store(tmp_path / "runs", tmp_path / "kept")
    assert again.record(run) is None and again.is_outdated(run) and not again.has_weights(run)
    folder = again.begin(run)
    assert not (folder / "results.json").exists() and not again.is_outdated(run)


def test_a_run_goes_on_under_a_new_key_and_is_kept(tmp_path):
    store, run = Store(tmp_path / "runs", tmp_path / "kept"), run_of()
    store.begin(run)
    newer = dataclasses.replace(run, defaults={**run.defaults, "MODEL.CLIP.NEW": 1})
    finish(store, newer, NUMBERS)
    assert not store.is_outdated(newer) and store.record(newer)["minutes"] == 1.5
    assert Store(tmp_path / "elsewhere", tmp_path / "kept").record(newer) is not None
