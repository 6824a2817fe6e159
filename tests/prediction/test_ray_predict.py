"""Prediction over a cluster: images, a row each, blocks that are left, and a killed call that goes on."""

import functools
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
from clipself_seg.prediction.ray_predict import (
    BlockWorker,
    Item,
    Parts,
    Workers,
    find_items,
    predict_block,
    predict_over_ray,
)
from clipself_seg.prediction.results import Detections
from tests.conftest import ROOT
from tests.tiny import save_noise


class Fake:
    """Finds one object in every image, and nothing in ones that are 13 pixels wide: there it fails."""

    max_pixels = 10_000

    def __init__(self):
        self.sizes = []

    def predict(self, images, sources=()):
        self.sizes.append(len(images))
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


def test_a_row_has_what_coco_has(tmp_path):
    fake = Fake()
    (row,) = predict_block(fake, [Item(save(tmp_path / "a.png"))], 4)
    assert row == {
        "image": str(tmp_path / "a.png"),
        "height": 8,
        "width": 20,
        "class_ids": [9],
        "class_names": ["dog"],
        "scores": [0.5],
        "boxes": [[2.0, 1.0, 3.0, 2.0]],
        "masks": [{"size": [8, 20], "counts": "a026000g3"}],
    }


def test_a_bad_image_has_its_error_and_the_others_their_results(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    names = [save(tmp_path / f"{i}.png", 13 if i == 2 else 20) for i in range(4)]
    items = [Item(name) for name in (*names[:3], str(tmp_path / "bad.png"), names[3])]
    fake = Fake()
    rows = predict_block(fake, items, 3)
    assert [row["image"] for row in rows] == [item.image for item in items]
    assert [row.get("class_ids") for row in rows] == [[9], [9], None, None, [9]]
    assert rows[2]["error"] == "cannot be processed (RuntimeError: 13 is too many)"
    assert "bad.png" in rows[3]["error"]
    assert fake.sizes == [3, 1, 1, 1, 1]  # a batch that fails goes one by one


def test_folders_lists_and_single_images_keep_their_order(tmp_path):
    (tmp_path / "folder").mkdir()
    in_folder = [save(tmp_path / "folder" / name) for name in ("a.png", "b.png")]
    single = save(tmp_path / "c.png")
    (tmp_path / "list.txt").write_text("c.png\n\nmissing.png\n")
    items = find_items([str(tmp_path / "folder")], str(tmp_path / "out"))
    assert items == [Item(name) for name in in_folder]
    items = find_items([str(tmp_path / "list.txt")], str(tmp_path / "out"))
    assert items == [Item(single), Item(str(tmp_path / "missing.png"))]
    with pytest.raises(InputError, match="c.png is given twice"):
        find_items([str(tmp_path / "list.txt"), single], str(tmp_path / "out"))
    with pytest.raises(InputError, match="nothing.png: no such file"):
        find_items([single, str(tmp_path / "nothing.png")], str(tmp_path / "out"))


def test_tables_have_paths_or_bytes(tmp_path, pyarrow):
    import pyarrow.parquet

    names = [save(tmp_path / f"{i}.png", 20 + i) for i in range(5)]
    contents = [open(name, "rb").read() for name in names]
    table = pyarrow.table({"file": [f"{i}.png" for i in range(5)], "content": contents})
    path = str(tmp_path / "images.parquet")
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    with pytest.raises(InputError, match="columns of texts or bytes: file, content; .* --column"):
        find_items([path], "out")
    assert find_items([path], "out", "file") == [Item(name) for name in names]
    items = find_items([path], "out", "content")
    assert [item.image for item in items] == [f"{path}#{row}" for row in range(5)]
    rows = predict_block(Fake(), [items[row] for row in (4, 0, 3)], 2)
    assert [row["width"] for row in rows] == [24, 20, 23]
    with pytest.raises(InputError, match="a.parquet is missing"):
        find_items([str(tmp_path / "a.parquet")], "out")
    twice = pyarrow.table([["a.png"], [1]], names=["file", "file"])
    pyarrow.parquet.write_table(twice, tmp_path / "c.parquet")
    with pytest.raises(InputError, match="c.parquet has .* bytes: file; .* a name that comes once"):
        find_items([str(tmp_path / "c.parquet")], "out")
    (tmp_path / "b.parquet").write_text("no table")
    with pytest.raises(InputError, match="b.parquet cannot be read as Parquet"):
        find_items([str(tmp_path / "b.parquet")], "out")


def test_what_is_there_is_not_done_again_and_other_settings_are_refused(tmp_path, pyarrow):
    import pyarrow.parquet

    items = [Item(save(tmp_path / f"{i}.png")) for i in range(5)]
    (tmp_path / "0.png").write_bytes(b"no image")
    parts = Parts(tmp_path / "out", items, 2)
    assert parts.begin({"weights": "abc"}, {}) == [0, 1, 2]
    for index in (0, 2):
        ray_predict.write_part(parts.path(index), predict_block(Fake(), parts.block(index), 2))
    assert Parts(tmp_path / "out", items, 2).begin({"weights": "abc"}, {}) == [1]
    parts.path(0).write_bytes(parts.path(0).read_bytes()[:-9])  # damaged since
    assert parts.begin({"weights": "abc"}, {}) == [0, 1]
    for index in (0, 1):
        ray_predict.write_part(parts.path(index), predict_block(Fake(), parts.block(index), 2))
    assert parts.begin({"weights": "abc"}, {}) == [] and parts.errors() == 1
    rows = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    assert [row["image"] for row in rows] == [item.image for item in items]
    assert rows[1]["masks"] == [{"size": [8, 20], "counts": "a026000g3"}]
    assert "0.png" in rows[0]["error"] and rows[0]["class_ids"] is None
    for changed, settings, size in (
        ("weights has changed ('abc', now 'xyz')", {"weights": "xyz"}, 2),
        ("images of a block has changed (2, now 3)", {"weights": "abc"}, 3),
    ):
        with pytest.raises(InputError) as refused:
            Parts(tmp_path / "out", items, size).begin(settings, {})
        assert changed in str(refused.value)
    save(tmp_path / "1.png", 21)
    with pytest.raises(InputError, match="images has changed"):
        parts.begin({"weights": "abc"}, {})


def test_a_part_that_is_kept_says_what_was_written(tmp_path, pyarrow, caplog):
    import pyarrow.parquet

    items = [Item(save(tmp_path / f"{i}.png")) for i in range(3)]
    parts = Parts(tmp_path / "out", items, 3)
    assert parts.begin({}, {}) == [0]
    path = parts.path(0)
    ray_predict.write_part(path, predict_block(Fake(), parts.block(0), 2))
    content, written = path.read_bytes(), pyarrow.parquet.read_table(path)
    again = 0
    for place in range(4, 8 * len(content), 8 * len(content) // 150):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        caplog.clear()
        if parts.begin({}, {}) == [0]:
            again += 1
            assert "part-00000.parquet is not as it was written: its 3 images" in caplog.text
        else:
            assert pyarrow.parquet.read_table(path).equals(written)
    assert again > 70
    ray_predict.write_part(path, predict_block(Fake(), items[::-1], 2))  # of other images
    assert parts.begin({}, {}) == [0]


@pytest.mark.parametrize("content", ["[]", "{}", '{"settings": 3}'])
def test_settings_that_are_none_are_refused(tmp_path, content):
    (tmp_path / ray_predict.SETTINGS_FILE).write_text(content)
    with pytest.raises(InputError, match="_settings.json.* has to be an object: give another"):
        Parts(tmp_path, [], 2).begin({}, {})


def test_a_few_bytes_of_parquet_do_not_stand_for_gigabytes(tmp_path, pyarrow, monkeypatch):
    import pyarrow.parquet

    def repeated(value):
        return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, "int32"), [value])

    monkeypatch.setattr(ray_predict, "MANY_BYTES", 1 << 20)
    path, out = str(tmp_path / "a.parquet"), str(tmp_path / "out")
    write = functools.partial(pyarrow.parquet.write_table, compression="zstd", store_schema=False)
    cases = (
        (pyarrow.nulls(1 << 19, pyarrow.string()), "has .* bytes, and states 524288 rows"),
        (pyarrow.array(["x" * 3 * 10**6]), "has .* and states 1 rows and 3000... bytes"),
        (repeated("x" * 10**5), "has a path of more than 4096 letters"),
    )
    for values, message in cases:
        write(pyarrow.table({"file": values}), path)
        with pytest.raises(InputError, match=f"a.parquet {message}"):
            find_items([path], out)
    write(pyarrow.table({"file": repeated(b"x" * 10**5)}), path)
    memory = pyarrow.default_memory_pool()
    before = memory.max_memory()
    rows = predict_block(Fake(), find_items([path], out), 1)
    assert len(rows) == 1000 and all("is not an image" in str(row["error"]) for row in rows)
    assert memory.max_memory() < max(before + 1, 5 * 10**7)  # half of what the rows stand for


def test_without_ray_the_command_that_brings_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackage, match=r'ray is not installed.* "clipself_seg\[ray\]"'):
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
    with pytest.raises(InputError, match="cluster has no GPU: give --device cpu"):
        ray_predict._placed(Workers(device="cuda"), {"CPU": 8.0})


def test_a_worker_writes_the_blocks_that_it_gets(tmp_path, monkeypatch, pyarrow):
    import pyarrow.parquet

    monkeypatch.chdir(tmp_path)
    parts = Parts(tmp_path / "out", [Item(save(tmp_path / f"{i}.png")) for i in range(5)], 2)
    worker = BlockWorker(lambda device: (Fake(), {}), "cpu", parts, 1, str(tmp_path))
    assert worker({"block": np.array([2, 0])}) == {"block": [2, 0]}
    assert parts.begin({}, {}) == [1]
    assert pyarrow.parquet.read_table(parts.path(2))["image"].to_pylist() == [
        str(tmp_path / "4.png")
    ]


@pytest.mark.heavy  # a real Ray
def test_a_killed_call_goes_on_and_does_nothing_twice(tmp_path, pyarrow):
    pytest.importorskip("ray", reason="ray is not installed: the extra ray has it")
    import pyarrow.parquet

    (tmp_path / "in").mkdir()
    for index in range(200):
        save_noise(tmp_path / "in" / f"{index:03d}.png", 40, 48, seed=index)
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    words = [
        str(tmp_path / "in"),
        "--ray",
        "--model",
        "mini-fvit",
        "--words",
        "red star, blue ring",
    ]
    words += ["--device", "cpu", "--workers", "1", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "clipself_seg", "predict", *words]

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
