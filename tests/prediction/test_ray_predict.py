"""Prediction over a cluster: a row an image, images that are left, and what is not ours to read."""

import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from clipself_seg.errors import InputError, MissingPackage
from clipself_seg.prediction import ray_predict
from clipself_seg.prediction.ray_predict import Worker, predict_over_ray
from clipself_seg.prediction.results import Detections
from tests.conftest import ROOT
from tests.tiny import save_noise


class Fake:
    """Finds one object in every image, and nothing in ones that are 13 pixels wide: there it fails."""

    max_pixels = 10_000

    def predict(self, images, sources=()):
        if any(image.shape[1] == 13 for image in images):
            raise RuntimeError("13 is too many")
        return [self._detections(image) for image in images]

    def _detections(self, image):
        masks = np.zeros((1, *image.shape[:2]), bool)
        masks[0, 1:3, 2:5] = True
        return Detections(
            boxes=np.array([[2, 1, 5, 3]], np.float32),
            scores=np.array([0.5], np.float32),
            labels=np.array([1]),
            masks=masks,
            names=("cat", "dog"),
            category_ids=(7, 9),
            seen=np.ones(2, bool),
            image=image,
        )


def save(path, width=20):
    Image.fromarray(np.full((8, width, 3), 99, np.uint8)).save(path)
    return str(path)


@pytest.fixture
def pyarrow():
    return pytest.importorskip("pyarrow", reason="pyarrow is not installed: the extra ray has it")


def test_a_row_has_what_coco_has_or_its_own_error(tmp_path, monkeypatch, pyarrow):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"no image")
    names = [save(tmp_path / "a.png"), save(tmp_path / "13.png", 13), str(tmp_path / "bad.png")]
    content = (tmp_path / "a.png").read_bytes()
    worker = Worker(lambda device: (Fake(), {}), "cpu", str(tmp_path))
    batch = {"image": [*names, "in memory"], "content": [b"", b"", b"", content]}
    a, odd, bad, memory = worker(pyarrow.table(batch)).to_pylist()
    assert a == {
        "image": names[0],
        "height": 8,
        "width": 20,
        "class_ids": [9],
        "class_names": ["dog"],
        "scores": [0.5],
        "boxes": [[2.0, 1.0, 3.0, 2.0]],
        "masks": [{"size": [8, 20], "counts": "a026000g3"}],
        "absent": None,
        "error": None,
    }
    assert memory == a | {"image": "in memory"}
    assert odd["error"] == "cannot be processed (RuntimeError: 13 is too many)"
    assert "bad.png is not an image" in bad["error"] and bad["class_ids"] is None


def test_a_file_that_a_killed_call_left_is_done_again(tmp_path, pyarrow, caplog):
    import pyarrow.parquet

    table = pyarrow.table({"image": ["a.png", "b.png"], "error": [None, "no image"]})
    for name in ("0.parquet", "1.parquet"):
        pyarrow.parquet.write_table(table, tmp_path / name)
    (tmp_path / "1.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:-9])
    assert ray_predict.column_of(tmp_path, "image") == ["a.png", "b.png"]
    assert "1.parquet is not whole" in caplog.text and not (tmp_path / "1.parquet").exists()


def test_results_of_other_settings_are_refused(tmp_path):
    ray_predict.require_settings(tmp_path, {"weights": "abc"}, {})
    ray_predict.require_settings(tmp_path, {"weights": "abc"}, {})
    with pytest.raises(InputError, match=r"weights has changed \('abc', now 'xyz'\)"):
        ray_predict.require_settings(tmp_path, {"weights": "xyz"}, {})
    (tmp_path / ray_predict.SETTINGS_FILE).write_text('{"settings": 3}')
    with pytest.raises(InputError, match="_settings.json.* has to be an object: give another"):
        ray_predict.require_settings(tmp_path, {}, {})


def test_without_ray_the_command_that_brings_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingPackage, match=r'ray is not installed.* pip install "clipself_seg\[ray\]"'
    ):
        predict_over_ray(lambda device: (Fake(), {}), ["a.png"], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.heavy  # a real Ray
def test_ray_reads_every_form_and_goes_on_after_a_kill(tmp_path, pyarrow):
    pytest.importorskip("ray", reason="ray is not installed: the extra ray has it")
    import pyarrow.parquet

    (tmp_path / "in/sub").mkdir(parents=True)
    names = [f"in/{index:03d}.png" for index in range(200)]
    for index, name in enumerate(names):
        save_noise(tmp_path / name, 40, 48, seed=index)
    (tmp_path / "in/sub/bad.png").write_bytes(b"no image")
    contents = [(tmp_path / name).read_bytes() for name in names[:3]]
    table = pyarrow.table({"content": contents, "file": names[:3]})
    pyarrow.parquet.write_table(table, tmp_path / "images.parquet")
    (tmp_path / "list.txt").write_text(f"{names[0]}\nmissing.png\n")
    with tarfile.open(tmp_path / "shard-0.tar", "w") as shard:
        shard.add(tmp_path / names[3], "0003.png")

    def command(*inputs, words="red star, blue ring"):
        options = ["--ray", "--model", "mini-fvit", "--words", words, "--device", "cpu"]
        options += ["--output", str(tmp_path / "out"), "--absent", "mark"]
        paths = [name if "://" in name else str(tmp_path / name) for name in inputs]
        return [sys.executable, "-m", "clipself_seg", "predict", *paths, *options]

    def done(*inputs, **how):
        line = [*command(*inputs), "--column", "content"] if len(inputs) > 1 else command(*inputs)
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, **how)

    def parts():
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}

    killed = subprocess.Popen(command("in"), cwd=ROOT, start_new_session=True)
    while not parts() and killed.poll() is None:
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = parts()
    first = done("in")
    assert first.returncode == 1, first.stderr
    assert first.stdout == f"200 of 201 predicted, in {tmp_path / 'out'}\n"
    assert len(parts().items() & before.items()) >= len(before) - 1
    more = done("images.parquet", "list.txt", "shard-0.tar", f"file://{tmp_path}/in")
    assert more.stdout == f"204 of 206 predicted, in {tmp_path / 'out'}\n", more.stderr
    rows = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    images = [row["image"] for row in rows]
    assert len(set(images)) == 206
    assert f"{tmp_path}/shard-0.tar#0003" in images
    assert all(set(row["absent"]) <= {"red star", "blue ring"} for row in rows if not row["error"])
    assert {"missing.png", "bad.png"} == {
        row["image"].split("/")[-1] for row in rows if row["error"]
    }
    written = parts()
    assert done("in").returncode == 1 and parts() == written  # nothing is left
    wrong = [*command("images.parquet"), "--column", "no"]
    refused = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and 'unknown column "no"' in refused.stderr
    other = subprocess.run(command("in", words="grass"), cwd=ROOT, capture_output=True, text=True)
    assert other.returncode == 2 and "results of other settings: " in other.stderr
