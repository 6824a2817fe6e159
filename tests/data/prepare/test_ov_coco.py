"""OV-COCO's files have the wanted annotations of COCO's, and are what training and evaluation read."""

from __future__ import annotations

import json

import pytest

from clipself_seg.data.datasets.records import detection_records
from clipself_seg.data.prepare.common import Options
from clipself_seg.data.prepare.detection import TARGETS, prepare_ov_coco
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError


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
    return {e.dataset_id for e in load_vocabulary("ov_coco_65").classes if e.seen in seen}


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
    assert f"objects of base classes: {len(written['annotations'])} (published: 665387)" in str(
        train
    )
    assert "images: " in str(val) and "(published: 4614)" in str(val)
    assert len(detection_records("ov_coco_val")) == len(read(coco, "val2017")[1]["images"])


def test_a_file_of_other_classes_is_refused(coco):
    path = coco / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"][4]["name"] = "aeroplane"
    path.write_text(json.dumps(content))
    words = 'instances_val2017.json: category 5 is "aeroplane" where COCO has "airplane"'
    with pytest.raises(InputError, match=words):
        prepare_ov_coco(Options(coco.parent), ["val2017"])


@pytest.mark.parametrize(
    "key, entry", [("image_id", [1]), ("image_id", 3), ("category_id", [1]), ("category_id", None)]
)
def test_a_broken_annotation_is_refused(coco, key, entry):
    path = coco / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation[key] = entry
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="instances_val2017.json: an annotation "):
        prepare_ov_coco(Options(coco.parent), ["val2017"])
