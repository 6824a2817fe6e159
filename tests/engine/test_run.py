"""What a run writes of its numbers."""

from __future__ import annotations

import json
import types

import pytest

from clipself_seg.config import load_config
from clipself_seg.engine import run
from tests.conftest import ROOT


class TwoSets:
    """Measures the first data set and fails at the second, if it is told to."""

    datasets = ("first", "second")

    def __init__(self, fails):
        self.fails = fails

    def __call__(self, model):
        results = {"first": {"mIoU": 50.0}}
        self.finished(results)
        if self.fails:
            raise OSError("a disk died")
        results["second"] = {"mIoU": 60.0}
        self.finished(results)
        return results


def test_numbers_of_finished_data_sets_are_kept_when_a_later_one_fails(tmp_path):
    cfg = load_config(ROOT / "configs/mini/semseg.yaml", ["OUTPUT_DIR", str(tmp_path)])
    model = types.SimpleNamespace(weights_hash=lambda: "none")
    with pytest.raises(OSError, match="a disk died"):
        run._report(cfg, model, TwoSets(fails=True), iterations=None)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["results"] == {"first": {"mIoU": 50.0}}
    assert written["provenance"]["not evaluated"] == ["second"]
    run._report(cfg, model, TwoSets(fails=False), iterations=None)
    written = json.loads((tmp_path / "results.json").read_text())
    assert list(written["results"]) == ["first", "second"]
    assert "not evaluated" not in written["provenance"]
