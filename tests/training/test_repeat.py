"""Several seeds: means and spreads by hand, finished runs are kept, failed ones are named."""

from __future__ import annotations

import json
import subprocess
from unittest import mock

import pytest

from clipself_seg.errors import InputError
from clipself_seg.training import repeat as module
from clipself_seg.training.repeat import repeat, spread_table


def write(folder, **numbers):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(
        json.dumps({"results": {"val": numbers}, "provenance": {}})
    )


def test_mean_and_spread_of_finished_runs(tmp_path):
    write(tmp_path / "a_seed0", mIoU=10.0, mACC=1.0)
    write(tmp_path / "a_seed5", mIoU=14.0)
    found = repeat(["configs/a.yaml"], [0, 5], tmp_path)
    numbers = found["configs/a.yaml"]
    assert numbers == {
        "val/mIoU": {"mean": 12.0, "spread": pytest.approx(8**0.5), "values": [10.0, 14.0]}
    }
    assert json.loads((tmp_path / "seeds.json").read_text())["seeds"] == [0, 5]
    assert "12.00 +- 2.83" in spread_table(found, ["/mIoU"])
    assert "mIoU" not in spread_table(found, ["/mACC"])


def test_a_run_that_is_missing_is_made_with_its_seed(tmp_path, monkeypatch):
    calls = []

    def train(words, cwd):
        calls.append(words[words.index("SEED") + 1])
        write(tmp_path / f"a_seed{calls[-1]}", mIoU=1.0)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(module.subprocess, "run", train)
    write(tmp_path / "a_seed0", mIoU=1.0)
    repeat(["configs/a.yaml"], [0, 1], tmp_path)
    assert calls == ["1"]


def test_what_one_configuration_trained_is_evaluated_under_another(tmp_path, monkeypatch):
    calls = []

    def train(words, cwd):
        calls.append(" ".join(map(str, words[1:])))
        write(tmp_path / f"b_seed{words[words.index('SEED') + 1]}", PQ=1.0)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(module.subprocess, "run", train)
    for seed in (0, 1):
        write(tmp_path / f"a_seed{seed}", PQ=2.0)
    found = repeat(["a.yaml"], [0, 1], tmp_path, evaluated=["b.yaml"])
    assert [found[name]["val/PQ"]["mean"] for name in ("a.yaml", "b.yaml")] == [2.0, 1.0]
    weights = tmp_path / "a_seed1" / "model_final.pth"
    assert f"--config-file b.yaml --eval-only MODEL.WEIGHTS {weights} SEED 1" in calls[1]


def test_one_seed_has_no_spread_and_a_failed_run_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="two different seeds"):
        repeat(["configs/a.yaml"], [3, 3], tmp_path)
    run = mock.Mock()
    monkeypatch.setattr(module.subprocess, "run", run)
    for status, what in ((1, "failed"), (-9, "was ended by SIGKILL, often for want of memory.*")):
        run.return_value = subprocess.CompletedProcess([], status)
        with pytest.raises(InputError, match=f"run {what}: python train_net.py.*SEED 3"):
            repeat(["configs/a.yaml"], [3, 4], tmp_path)


@pytest.mark.parametrize("content", ["[" * 99_999, "[1]", '{"results": 3, "provenance": {}}', "{"])
def test_results_that_cannot_be_read_back_are_named(tmp_path, content):
    write(tmp_path / "a_seed0", mIoU=1.0)
    (tmp_path / "a_seed0" / "results.json").write_text(content)
    with pytest.raises(InputError, match="a_seed0/results.json "):
        repeat(["configs/a.yaml"], [0, 1], tmp_path)


def test_a_number_that_is_none_in_one_run_has_no_spread(tmp_path):
    for seed, number in enumerate(("1.5", "NaN")):
        (tmp_path / f"a_seed{seed}").mkdir()
        content = f'{{"results": {{"set": {{"PQ": {number}}}}}, "provenance": {{}}}}'
        (tmp_path / f"a_seed{seed}/results.json").write_text(content)
    assert "nan +- nan" in spread_table(repeat(["a.yaml"], (0, 1), tmp_path))
