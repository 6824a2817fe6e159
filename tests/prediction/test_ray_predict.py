"""Prediction over a cluster: what is handed out, and a killed call that goes on (heavy: a real Ray)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from clipself_seg.errors import InputError, MissingPackage
from clipself_seg.prediction import ray_predict
from clipself_seg.prediction.ray_predict import BlockWorker, Item, Parts, Workers, predict_over_ray
from tests.conftest import ROOT
from tests.prediction.test_blocks import Fake, save


def ray_packages() -> None:
    """Skips a test where one of the packages is not installed."""
    for name in ("pyarrow", "ray"):
        pytest.importorskip(name, reason=f"{name} is not installed: the extra ray has it")


def test_without_ray_the_command_that_brings_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingPackage, match=r'ray is not installed.* pip install "clipself_seg\[ray\]"'
    ):
        predict_over_ray(lambda device: (Fake(), {}), ["a.png"], str(tmp_path / "out"), Workers())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("workers", "resources", "placed"),
    [
        (Workers(), {"CPU": 8.0, "GPU": 2.0}, Workers(2, "cuda")),
        (Workers(), {"CPU": 8.0}, Workers(8, "cpu")),
        (Workers(3, "cpu", 4), {"CPU": 8.0, "GPU": 2.0}, Workers(3, "cpu", 4)),
    ],
)
def test_workers_are_one_a_gpu_or_else_one_a_core(workers, resources, placed):
    assert ray_predict._placed(workers, resources) == placed


def test_a_gpu_that_no_machine_has_is_refused():
    with pytest.raises(InputError, match="cluster has no GPU: give --device cpu"):
        ray_predict._placed(Workers(device="cuda"), {"CPU": 8.0})


def test_a_worker_writes_the_blocks_that_it_gets(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: the extra ray has it")
    import pyarrow.parquet

    monkeypatch.chdir(tmp_path)
    parts = Parts(tmp_path / "out", [Item(save(tmp_path / f"{i}.png")) for i in range(5)], 2)
    worker = BlockWorker(lambda device: (Fake(), {}), "cpu", parts, 1, str(tmp_path))
    assert worker({"block": np.array([2, 0])}) == {"block": [2, 0]}
    assert parts.begin({}, {}) == [1]
    assert pyarrow.parquet.read_table(parts.path(2))["image"].to_pylist() == [
        str(tmp_path / "4.png")
    ]


@pytest.mark.heavy
def test_a_killed_call_goes_on_and_does_nothing_twice(tmp_path):
    ray_packages()
    import pyarrow.parquet

    (tmp_path / "in").mkdir()
    for index in range(200):
        pixels = np.random.default_rng(index).integers(256, size=(40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{index:03d}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    words = ["--ray", "--boxes", "--vocabulary", "red star, blue ring", "--device", "cpu"]
    words += ["--workers", "1", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    command = [sys.executable, str(ROOT / "tools" / "predict.py"), *words]

    def parts():
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}

    killed = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    while not parts() and killed.poll() is None:
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = parts()
    assert 0 < len(before) < 4
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stdout == f"200 of 201 predicted, in {tmp_path / 'out'}\n"
    assert parts().items() >= before.items() and len(parts()) == 4
    rows = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    images = [f"{index:03d}.png" for index in range(200)] + ["bad.png"]
    assert [row["image"] for row in rows] == [str(tmp_path / "in" / name) for name in images]
    assert [row["height"] for row in rows] == [40] * 200 + [None]
    assert "bad.png" in rows[-1]["error"]

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (1, done.stdout)
    other = [word.replace("blue ring", "grass") for word in command]
    refused = subprocess.run(other, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "results of other settings: " in refused.stderr
