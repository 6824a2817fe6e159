"""OV-LVIS's file for training has everything of LVIS v1 but the annotations of rare classes."""

from __future__ import annotations

import json

import pytest

from clipself_seg.data.datasets.records import detection_records
from clipself_seg.data.prepare.common import Options
from clipself_seg.data.prepare.detection import prepare_ov_lvis
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError

LVIS = load_vocabulary("lvis_v1_1203").classes
SHAPE = {"area": 90, "bbox": [1, 2, 10, 9], "segmentation": [[1, 2, 11, 2, 11, 11]]}


def category_of(frequency):
    return next(entry.dataset_id for entry in LVIS if entry.frequency == frequency)


@pytest.fixture
def content(tmp_path, monkeypatch):
    """Three images in LVIS's form: one with a frequent and a rare class, one with a common, one with a rare one."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "coco").mkdir()
    (tmp_path / "lvis").mkdir()
    url = "http://images.cocodataset.org/{}2017/00000{}.jpg"
    images = [
        {"id": n, "coco_url": url.format(split, n), "width": 64, "height": 48}
        for n, split in enumerate(("train", "val", "train"))
    ]
    classes = ((0, "f"), (0, "r"), (1, "c"), (2, "r"))
    annotations = [
        {"id": n, "image_id": image, "category_id": category_of(kind), **SHAPE}
        for n, (image, kind) in enumerate(classes)
    ]
    categories = [{"id": e.dataset_id, "name": e.names[0], "frequency": e.frequency} for e in LVIS]
    return {"images": images, "annotations": annotations, "categories": categories}


def prepare(root, content):
    (root / "lvis/lvis_v1_train.json").write_text(json.dumps(content))
    (done,) = prepare_ov_lvis(Options(root, overwrite=True))
    return done


def test_rare_annotations_go_and_all_else_stays(content, tmp_path):
    done = prepare(tmp_path, content)
    written = json.loads((tmp_path / "lvis/lvis_v1_train_seen_1203_cat.json").read_text())
    kept = [content["annotations"][0], content["annotations"][2]]
    assert written == content | {"annotations": kept}
    assert done.left_out == 0 and "annotated classes: 2 (published: 866)" in done.notes
    assert "categories: 1203 (published: 1203)" in done.notes


def test_what_is_written_is_trained_on(content, tmp_path):
    prepare(tmp_path, content)
    records = detection_records("ov_lvis_train", training=True, masks=True)
    assert [record["file_name"] for record in records] == [
        str(tmp_path / "coco/train2017/000000.jpg"),
        str(tmp_path / "coco/val2017/000001.jpg"),
    ]
    labels = [[LVIS[e["label"]].frequency for e in record["annotations"]] for record in records]
    assert labels == [["f"], ["c"]]
    assert len(detection_records("ov_lvis_train")) == 3


def test_another_version_of_lvis_is_refused(content, tmp_path):
    content["annotations"][0]["category_id"] = 1230
    with pytest.raises(InputError, match=r"lvis_v1_train.json: category ids \[1230\] are not in"):
        prepare(tmp_path, content)
