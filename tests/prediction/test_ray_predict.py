"""Prediction over a cluster: a row an image, images that are left, and what is not ours to read."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from clipself_seg.commands import predict
from clipself_seg.errors import InputError, MissingPackage
from clipself_seg.prediction import ray_predict
from clipself_seg.prediction.ray_predict import Worker, predict_over_ray
from clipself_seg.prediction.results import Detections
from tests.conftest import ROOT
from tests.tiny import save_noise


class Fake:
    """Finds one object in every image, and nothing in ones that are 13 pixels wide: there it fails.

    Its process is killed at the first image that is 17 pixels wide.
    """

    max_pixels = 10_000

    def __init__(self, killed=None):
        self.killed = killed
        self.provenance = {}

    def predict(self, images, sources=()):
        if any(image.shape[1] == 13 for image in images):
            raise RuntimeError("13 is too many")
        if any(image.shape[1] == 17 for image in images) and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1 if self.killed else 0)
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
            category_ids=(7, os.getpid() if self.killed else 9),
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


def test_a_file_that_a_killed_call_left_is_done_again_and_other_tables_stay(
    tmp_path, pyarrow, caplog
):
    import pyarrow.parquet

    rows = [{"image": "a.png"}, {"image": "b.png", "error": "no image"}]
    table = pyarrow.Table.from_pylist(rows, schema=ray_predict._schema())
    for name in ("0.parquet", "1.parquet"):
        pyarrow.parquet.write_table(table, tmp_path / name)
    (tmp_path / "1.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:-9])
    assert ray_predict.column_of(tmp_path, "image") == ["a.png", "b.png"]
    assert "1.parquet is not whole" in caplog.text and not (tmp_path / "1.parquet").exists()
    for columns in ({"content": [b"PNG"]}, {"image": ["a.png"]}):  # somebody else's
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "1.parquet")
        with pytest.raises(InputError, match="1.parquet is no table of results: give another"):
            ray_predict.column_of(tmp_path, "image")
        assert (tmp_path / "1.parquet").exists()


def test_masks_are_found_by_the_name_of_an_image_or_by_its_key_in_a_shard():
    names = ["/data/img#3.jpg", "s3://b/shard-0.tar#dir/0003", "/data/S.TAR#4"]
    assert [ray_predict._source(name).name for name in names] == ["img#3", "0003", "4"]


def test_a_cluster_that_does_not_answer_is_said_in_a_sentence(tmp_path, monkeypatch):
    ray = mock.Mock(init=mock.Mock(side_effect=ConnectionError("no Ray at 10.0.0.1:6379")))
    ray.exceptions.RayError = RuntimeError
    monkeypatch.setattr(ray_predict, "optional", lambda name: ray)
    monkeypatch.setattr(ray_predict, "column_of", lambda *_: [])
    with pytest.raises(InputError, match=r"Ray ended \(no Ray at 10.0.0.1:6379\)"):
        predict_over_ray(lambda device: (Fake(), {}), ["a.png"], str(tmp_path))


def test_without_ray_the_command_that_brings_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingPackage, match=r'ray is not installed.* pip install "clipself_seg\[ray\]"'
    ):
        predict_over_ray(lambda device: (Fake(), {}), ["a.png"], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.heavy  # a real Ray
def test_two_workers_do_all_images_though_one_is_killed_and_two_images_fail(tmp_path, pyarrow):
    ray = pytest.importorskip("ray", reason="ray is not installed: the extra ray has it")
    import pyarrow.parquet

    (tmp_path / "in").mkdir()
    for number in range(300):
        save(tmp_path / f"in/{number:03d}.png", {40: 13, 90: 17}.get(number, 20))
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    init, killed = ray.init, tmp_path / "killed"
    with mock.patch.object(ray, "init", lambda **how: init(num_cpus=2, **how)):
        made = predict_over_ray(
            lambda device: (Fake(killed), {}),
            [str(tmp_path / "in")],
            str(tmp_path / "out"),
            workers=2,
        )
    assert made == (2, 301) and killed.exists()
    rows = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    assert len({row["image"] for row in rows}) == 301
    workers = {row["class_ids"][0] for row in rows if not row["error"]}
    assert len(workers) >= 2


@pytest.mark.heavy  # a real Ray
def test_rows_are_the_files_of_a_call_without_ray(tmp_path, pyarrow):
    pytest.importorskip("ray", reason="ray is not installed: the extra ray has it")
    import pyarrow.parquet

    (tmp_path / "in").mkdir()
    scenes = sorted((ROOT / "clipself_seg/mini/world/mini/val").glob("*.jpg"))[:2]
    for scene in scenes:
        shutil.copy(scene, tmp_path / "in")

    def rows(*options):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert predict.main([str(tmp_path / "in"), *options, "--ray", "--output", str(out)]) == 0
        read = pyarrow.parquet.read_table(out).to_pylist()
        return {Path(row["image"]).stem: row for row in read}

    example = ["--example", f"odd={scenes[0]}#20,20,60,60"]
    semantic = ["--model", "mini", "--words", "red star, grass", *example, "--device", "cpu"]
    plain = tmp_path / "plain"
    assert predict.main([str(tmp_path / "in"), *semantic, "--output", str(plain)]) == 0
    for name, row in rows(*semantic).items():
        labels = np.asarray(Image.open(plain / f"labels/{name}.png"))
        painted = sum(c * mask_utils.decode(m) for c, m in zip(row["class_ids"], row["masks"]))
        assert (painted == labels + 1).all() and {"odd"} <= set(row["class_names"])
    masks = ["--task", "panoptic", "--masks", str(plain / "labels"), "--absent", "mark"]
    given = ["--model", "mini", "--words", "red star, grass", *masks, "--device", "cpu"]
    assert predict.main([str(tmp_path / "in"), *given, "--output", str(plain)]) == 0
    content, read = json.loads((plain / "panoptic.json").read_text()), rows(*given)
    for entry, annotation in zip(content["images"], content["annotations"], strict=True):
        row = read[Path(entry["file_name"]).stem]
        assert row["absent"] == entry["absent"] and row["masks"]
        assert row["class_ids"] == [one["category_id"] for one in annotation["segments_info"]]


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
    # In front of it Ray may warn of a slow machine.
    assert first.stdout.endswith(f"200 of 201 predicted, in {tmp_path / 'out'}\n")
    assert len(parts().items() & before.items()) >= len(before) - 1
    more = done("images.parquet", "list.txt", "shard-0.tar", f"file://{tmp_path}/in")
    assert more.stdout.endswith(f"204 of 206 predicted, in {tmp_path / 'out'}\n"), more.stderr
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
