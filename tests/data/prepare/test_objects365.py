"""Objects365's categories come out in the order of their ids, if they are those of its first version."""

from __future__ import annotations

import json

import pytest

from clipself_seg.data.datasets.records import detection_records
from clipself_seg.data.prepare.common import Options
from clipself_seg.data.prepare.detection import prepare_objects365
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError

NAMES = load_vocabulary("objects365_v1").names


@pytest.fixture
def content(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "Objects365v1/val").mkdir(parents=True)
    # As the official file spells them: no blanks around "/".
    names = [name.replace(" / ", "/") for name in NAMES]
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(names)]
    box = {"id": 1, "image_id": 8, "bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": 0}
    return {
        "images": [{"id": 8, "file_name": "obj365_val_8.jpg", "width": 90, "height": 80}],
        "annotations": [box | {"category_id": 365}],
        "categories": [categories[n] for n in (*range(7, 365), *range(7))],
    }


def prepare(root, content):
    (root / "Objects365v1/objects365_val.json").write_text(json.dumps(content))
    (done,) = prepare_objects365(Options(root))
    return done


def test_categories_are_sorted_and_the_rest_stays(content, tmp_path):
    done = prepare(tmp_path, content)
    written = json.loads((tmp_path / "Objects365v1/objects365_reorder_val.json").read_text())
    assert [entry["id"] for entry in written.pop("categories")] == list(range(1, 366))
    assert written == {key: content[key] for key in ("images", "annotations")}
    assert done.notes == ("images: 1 (published: 30000)", "categories: 365 (published: 365)")
    (record,) = detection_records("transfer_objects365_val")
    assert record["file_name"] == str(tmp_path / "Objects365v1/val/obj365_val_8.jpg")
    assert [NAMES[e["label"]] for e in record["annotations"]] == [NAMES[-1]]


def test_the_second_version_is_refused(content, tmp_path):
    for entry in content["categories"]:
        entry["name"] = entry["name"].title()
    words = 'objects365_val.json: category 1 is "Person" where "objects365_v1" has "person"'
    with pytest.raises(InputError, match=words):
        prepare(tmp_path, content)
