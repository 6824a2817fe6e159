"""Blocks of images: what goes in, a row an image, and which files are left to write."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clipself_seg.errors import InputError, MissingPackage
from clipself_seg.prediction import ray_predict
from clipself_seg.prediction.detection import Detections
from clipself_seg.prediction.ray_predict import Item, Parts, find_items, optional, predict_block


class Fake:
    """Finds one object in every image, and nothing in ones that are 13 pixels wide: there it fails."""

    max_pixels = 10_000

    def __init__(self):
        self.sizes = []

    def predict(self, images):
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


def test_a_missing_package_is_named_with_what_brings_it():
    with pytest.raises(
        MissingPackage, match=r'no_such_package .* pip install "clipself_seg\[ray\]"'
    ):
        optional("no_such_package")


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
