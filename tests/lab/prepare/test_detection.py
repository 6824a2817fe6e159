"""Annotation files for detection have what is wanted of the official ones."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from clipself_seg.data.datasets.records import detection_records
from clipself_seg.data.datasets.table import COCO, DataRoot
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from lab.prepare import detection
from lab.prepare.common import Options
from lab.prepare.detection import (
    TARGETS,
    Count,
    prepare_objects365,
    prepare_ov_coco,
    prepare_ov_lvis,
    rewrite,
)

CONTENT = {
    "info": {"year": 2017, "note": 'a "quoted" ä'},
    "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(7)],
    "annotations": [{"id": n, "bbox": [n, 0.5, 1, 2], "iscrowd": 0} for n in range(25)],
    "licenses": [],
    "version": 3,
}


class Job(NamedTuple):
    """What `rewrite` is given beside options."""

    source: Path
    target: Path
    archive: DataRoot
    change: Callable[[dict, Path], list[Count]]


@pytest.fixture
def job(tmp_path):
    source = tmp_path / "in/source.json"
    source.parent.mkdir()
    source.write_text(json.dumps(CONTENT))

    def change(content, path):
        assert path == source
        content["images"] = content["images"][:5]
        return [Count("images", 5, 5), Count("boxes", 25, 26)]

    return Job(source, tmp_path / "out/target.json", COCO, change)


@pytest.mark.parametrize("at_once", [1, 10, 10_000])
def test_everything_but_the_change_is_as_it_was(job, monkeypatch, at_once, tmp_path, caplog):
    monkeypatch.setattr(detection, "AT_ONCE", at_once)
    with caplog.at_level(logging.WARNING):
        done = rewrite(*job, Options(tmp_path))
    (record,) = caplog.records
    assert "target.json: another number of boxes than published" in record.getMessage()
    assert json.loads(job.target.read_text()) == CONTENT | {"images": CONTENT["images"][:5]}
    assert done[1:4] == (1, 0, 2)
    assert str(done).splitlines()[1:] == [
        "    images: 5 (published: 5)",
        "    boxes: 25 (published: 26)",
    ]


def test_what_is_there_is_kept_until_it_is_to_be_overwritten(job, tmp_path):
    job.target.parent.mkdir()
    job.target.write_text("mine")
    assert rewrite(*job, Options(tmp_path))[1:] == (0, 1, 0, ())
    assert job.target.read_text() == "mine"
    (job.target.parent / ".target.json.x.part").mkdir()
    rewrite(*job, Options(tmp_path, overwrite=True))
    assert [path.name for path in job.target.parent.iterdir()] == ["target.json"]
    assert json.loads(job.target.read_text())["version"] == 3


def test_a_change_that_fails_leaves_nothing(job, tmp_path):
    def refuse(content, path):
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        rewrite(*job._replace(change=refuse), Options(tmp_path))
    assert not list(job.target.parent.iterdir())
    job.source.write_text(json.dumps(CONTENT | {"images": 0.5}))
    with pytest.raises(InputError, match="source.json: images is 0.5, and has to be a list"):
        rewrite(*job, Options(tmp_path))


@pytest.fixture
def coco(copy):
    """COCO's real annotation files of a few images, without the images."""
    folder = copy("coco/annotations").parent
    for split in TARGETS:
        (folder / split).mkdir()
    return folder


def read(folder, split):
    source = json.loads((folder / f"annotations/instances_{split}.json").read_text())
    return source, json.loads((folder / "zero-shot" / TARGETS[split]).read_text())


def ids(*, seen):
    return {e.dataset_id for e in Vocabulary.load("ov_coco_65").classes if e.seen in seen}


@pytest.mark.parametrize("split, seen", [("train2017", {True}), ("val2017", {True, False})])
def test_wanted_annotations_and_their_images_stay_as_they_were(coco, split, seen):
    (done,) = prepare_ov_coco(Options(coco.parent), [split])
    source, written = read(coco, split)
    wanted = [e for e in source["annotations"] if e["category_id"] in ids(seen=seen)]
    assert written["annotations"] == wanted and any(e["iscrowd"] for e in wanted)
    images = [i for i in source["images"] if i["id"] in {e["image_id"] for e in wanted}]
    assert written["images"] == images
    # Of the train images a few show novel or none of the 65 classes only.
    assert (
        done.left_out == len(source["images"]) - len(images) == (6 if split == "train2017" else 0)
    )
    everything = ids(seen={True, False})
    assert written["categories"] == [c for c in source["categories"] if c["id"] in everything]
    assert len(written["categories"]) == 65
    assert written.keys() == source.keys() and written["info"] == source["info"]


def test_what_is_written_is_read_and_its_counts_are_printed(coco):
    train, val = prepare_ov_coco(Options(coco.parent))
    records = detection_records("ov_coco_train", training=True, masks=True)
    source, written = read(coco, "train2017")
    assert len(records) == len(written["images"])
    objects = [e for record in records for e in record["annotations"]]
    assert len(objects) == sum(not e["iscrowd"] for e in written["annotations"])
    assert f"base classes: {len(written['annotations'])} (published: 665387)" in str(train)
    assert "images: " in str(val) and "(published: 4614)" in str(val)
    assert len(detection_records("ov_coco_val")) == len(read(coco, "val2017")[1]["images"])


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("categories", {"name": "aeroplane"}, 'category 1 is "aeroplane" where COCO has "person"'),
        ("annotations", {"image_id": 3}, "an annotation "),
        ("annotations", {"category_id": None}, r"annotations\[0\].category_id is None"),
    ],
)
def test_a_file_of_other_classes_or_a_broken_one_is_refused(coco, key, change, message):
    path = coco / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    for entry in content[key]:
        entry |= change
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"instances_val2017.json: {message}"):
        prepare_ov_coco(Options(coco.parent), ["val2017"])


LVIS = Vocabulary.load("lvis_v1_1203").classes
SHAPE = {"area": 90, "bbox": [1, 2, 10, 9], "segmentation": [[1, 2, 11, 2, 11, 11]]}


def category_of(frequency):
    return next(entry.dataset_id for entry in LVIS if entry.frequency == frequency)


@pytest.fixture
def content(datasets_root):
    """Three images in LVIS's form: one with a frequent and a rare class, one with a common, one with a rare one."""
    (datasets_root / "coco").mkdir()
    (datasets_root / "lvis").mkdir()
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
    records = detection_records("ov_lvis_train", training=True, masks=True)
    assert [record["file_name"] for record in records] == [
        str(tmp_path / "coco/train2017/000000.jpg"),
        str(tmp_path / "coco/val2017/000001.jpg"),
    ]
    labels = [[LVIS[e["label"]].frequency for e in record["annotations"]] for record in records]
    assert labels == [["f"], ["c"]]
    content["annotations"][0]["category_id"] = 1230
    with pytest.raises(InputError, match=r"lvis_v1_train.json: category ids \[1230\] are not in"):
        prepare(tmp_path, content)


NAMES = Vocabulary.load("objects365_v1").first_names


@pytest.fixture
def objects365(datasets_root):
    (datasets_root / "Objects365v1/val").mkdir(parents=True)
    # As the official file spells them: no blanks around "/".
    names = [name.replace(" / ", "/") for name in NAMES]
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(names)]
    box = {"id": 1, "image_id": 8, "bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": 0}
    return {
        "images": [{"id": 8, "file_name": "obj365_val_8.jpg", "width": 90, "height": 80}],
        "annotations": [box | {"category_id": 365}],
        "categories": [categories[n] for n in (*range(7, 365), *range(7))],
    }


def prepared_objects(root, objects365):
    (root / "Objects365v1/objects365_val.json").write_text(json.dumps(objects365))
    (done,) = prepare_objects365(Options(root))
    return done


def test_categories_are_sorted_and_the_rest_stays(objects365, tmp_path):
    done = prepared_objects(tmp_path, objects365)
    written = json.loads((tmp_path / "Objects365v1/objects365_reorder_val.json").read_text())
    assert [entry["id"] for entry in written.pop("categories")] == list(range(1, 366))
    assert written == {key: objects365[key] for key in ("images", "annotations")}
    assert done.notes == ("images: 1 (published: 30000)", "categories: 365 (published: 365)")
    (record,) = detection_records("transfer_objects365_val")
    assert record["file_name"] == str(tmp_path / "Objects365v1/val/obj365_val_8.jpg")
    assert [NAMES[e["label"]] for e in record["annotations"]] == [NAMES[-1]]


def test_the_second_version_is_refused(objects365, tmp_path):
    for entry in objects365["categories"]:
        entry["name"] = entry["name"].title()
    words = 'objects365_val.json: category 1 is "Person" where "objects365_v1" has "person"'
    with pytest.raises(InputError, match=words):
        prepared_objects(tmp_path, objects365)
