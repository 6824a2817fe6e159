"""Names of detection lead to files, classes, records and Detectron2's metadata."""

from __future__ import annotations

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from clipself_seg.data.datasets.records import (
    detection_records,
    find_dataset,
    register_datasets,
    vocabulary_name,
)
from clipself_seg.data.datasets.table import DATASETS, DetectionSet
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError
from clipself_seg.mini.writer import WorldSize, make_worlds


def annotation(image, category, **changes):
    return {
        **{"id": 1, "image_id": image, "category_id": category, "bbox": [1, 2, 30, 40], "area": 9},
        "segmentation": [[1, 2, 31, 2, 31, 42]],
        **changes,
    }


def write(root, file, images, annotations, categories):
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [{"id": n, "width": 50, "height": 60, **image} for n, image in enumerate(images)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for folder in ("coco/train2017", "coco/val2017", "Objects365v1/val"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def named(*names):
    return [{"file_name": f"{name}.jpg"} for name in names]


def write_ov_coco(root, *annotations, images=("a", "b", "c", "d")):
    file = "coco/zero-shot/instances_train2017_seen_2_65_cat.json"
    categories = [{"id": 1, "name": "person"}, {"id": 17, "name": "cat"}, {"id": 9, "name": "boat"}]
    write(root, file, named(*images), list(annotations), categories)


def test_names_are_in_the_catalogue_once_with_what_detectron2_asks_for():
    assert DATASETS.keys() <= set(DatasetCatalog.list())
    register_datasets()
    metadata = MetadataCatalog.get("ov_coco_val")
    assert len(metadata.thing_classes) == 65 and metadata.evaluator_type == "coco"
    assert metadata.thing_dataset_id_to_contiguous_id[90] == 64
    assert metadata.json_file.endswith("coco/zero-shot/instances_val2017_all_2.json")
    assert MetadataCatalog.get("ov_lvis_val").evaluator_type == "lvis"
    objects365 = MetadataCatalog.get("transfer_objects365_val").as_dict()
    assert len(objects365["thing_classes"]) == 365
    assert "thing_dataset_id_to_contiguous_id" not in objects365


@pytest.mark.parametrize(
    "name, classes, base",
    [
        ("ov_coco_train", 65, 48),
        ("ov_coco_val", 65, 48),
        ("ov_lvis_train", 1203, 866),
        ("ov_lvis_val", 1203, 866),
        ("mini_base_boxes", 36, 24),
        ("mini_val_boxes", 36, 24),
    ],
)
def test_training_and_evaluation_share_the_classes(name, classes, base):
    vocabulary = load_vocabulary(vocabulary_name(name))
    assert len(vocabulary) == classes and vocabulary.seen.sum() == base


def test_transfer_has_all_classes_of_its_data_set():
    sizes = {"transfer_coco_val": 80, "transfer_objects365_val": 365, "mini2_val_boxes": 24}
    for name, classes in sizes.items():
        assert len(load_vocabulary(vocabulary_name(name))) == classes


def test_training_leaves_small_images_and_those_without_annotation_out(root):
    crowd = annotation(2, 9, iscrowd=1)
    write_ov_coco(root, annotation(0, 9), annotation(1, 1), crowd)
    path = root / "coco/zero-shot/instances_train2017_seen_2_65_cat.json"
    content = json.loads(path.read_text())
    content["images"][1]["height"] = 31
    path.write_text(json.dumps(content))
    records = detection_records("ov_coco_train", training=True)
    # The first has a boat, the third a crowd alone; the second is small, the fourth has nothing.
    assert [(r["image_id"], [e["label"] for e in r["annotations"]]) for r in records] == [
        *((0, [load_vocabulary("ov_coco_65").names.index("boat")]), (2, [])),
    ]
    assert records[0]["file_name"] == str(root / "coco/train2017/a.jpg")
    assert len(detection_records("ov_coco_train")) == 4


def test_novel_annotations_are_refused_in_a_file_for_training_with_the_command_that_mends_it(root):
    write_ov_coco(root, annotation(0, 9), annotation(1, 17))
    words = (
        r"_65_cat.json: 1 annotations .*: cat \(1\); run `clipself-seg data prepare ov_coco --sp"
    )
    for training in (True, False):
        with pytest.raises(InputError, match=words):
            detection_records("ov_coco_train", training=training)


def test_an_evaluation_file_with_novel_classes_is_read_but_not_trained_on(root):
    write(
        *(root, "coco/zero-shot/instances_val2017_all_2.json", named("a"), [annotation(0, 17)]),
        [{"id": 17, "name": "cat"}],
    )
    (record,) = detection_records("ov_coco_val")
    assert [e["label"] for e in record["annotations"]] == [11]
    with pytest.raises(InputError, match=r"cat \(1\)"):
        detection_records("ov_coco_val", training=True)


def test_masks_are_there_where_they_are_asked_for(root):
    write_ov_coco(root, annotation(0, 9))
    (entry,) = detection_records("ov_coco_train", masks=True)[0]["annotations"]
    assert entry["segmentation"] == [[1, 2, 31, 2, 31, 42]]
    assert "segmentation" not in detection_records("ov_coco_train")[0]["annotations"][0]


def test_images_of_lvis_lie_in_both_folders_of_coco(root):
    url = "http://images.cocodataset.org/{}2017/1.jpg"
    images = [{"coco_url": url.format(split)} for split in ("train", "val")]
    categories = [{"id": 3, "name": "airplane"}]
    file = "lvis/lvis_v1_val.json"
    write(root, file, images, [annotation(0, 3)], categories)
    records = detection_records("ov_lvis_val")
    wanted = [str(root / f"coco/{split}2017/1.jpg") for split in ("train", "val")]
    assert [record["file_name"] for record in records] == wanted
    write(root, file, named("a"), [annotation(0, 3)], categories)
    with pytest.raises(InputError, match='lvis_v1_val.json: image 0 has no "coco_url"'):
        detection_records("ov_lvis_val")


def test_rare_annotations_are_refused_in_training_on_lvis(root):
    url = "http://images.cocodataset.org/train2017/1.jpg"
    file = "lvis/lvis_v1_train_seen_1203_cat.json"
    rare = next(e for e in load_vocabulary("lvis_v1_1203").classes if e.frequency == "r")
    categories = [{"id": rare.dataset_id, "name": rare.names[0]}]
    write(root, file, [{"coco_url": url}], [annotation(0, rare.dataset_id)], categories)
    with pytest.raises(
        InputError, match=rf"{rare.names[0]} \(1\); run `clipself-seg data prepare ov_l"
    ):
        detection_records("ov_lvis_train", training=True)


def test_classes_of_objects365_follow_from_the_order_of_its_ids(root):
    names = load_vocabulary("objects365_v1").names
    categories = [{"id": 2 * n + 5, "name": f"{name} "} for n, name in enumerate(names)]
    file = "Objects365v1/objects365_reorder_val.json"
    write(root, file, named("a"), [annotation(0, 2 * 364 + 5)], categories[::-1])
    (record,) = detection_records("transfer_objects365_val")
    assert [e["label"] for e in record["annotations"]] == [364]
    categories[3]["name"] = "Lamp"
    write(root, file, named("a"), [annotation(0, 5)], categories)
    with pytest.raises(InputError, match='category 11 is "Lamp" where "objects365_v1" has "hat"'):
        detection_records("transfer_objects365_val")


def test_a_missing_file_is_answered_with_the_command_that_writes_it(root, monkeypatch):
    words = "all_2.json is missing; run `clipself-seg data prepare ov_coco --splits val2017` once .*json"
    with pytest.raises(InputError, match=words):
        detection_records("ov_coco_val")
    with pytest.raises(InputError, match=r"lvis_v1_val.json is missing; set DETECTRON2_DATASETS"):
        detection_records("ov_lvis_val")
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(root))
    with pytest.raises(InputError, match="mini/base is missing; .*data mini-world"):
        detection_records("mini_base_boxes")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match='did you mean "ov_coco_val"'):
        detection_records("ov_coco_vall")
    with pytest.raises(InputError, match='no data set "coco_2017_val" for detection'):
        detection_records("coco_2017_val")


def test_a_data_set_of_ones_own_needs_a_vocabulary(tmp_path, registered):
    registered.append("my_boxes")
    file = tmp_path / "boxes.json"
    write(tmp_path, "boxes.json", named("a"), [annotation(0, 9)], [{"id": 9, "name": "boat"}])
    register_coco_instances("my_boxes", {}, str(file), str(tmp_path))
    with pytest.raises(InputError, match='MetadataCatalog.get."my_boxes"..vocabulary'):
        find_dataset("my_boxes", DetectionSet)
    MetadataCatalog.get("my_boxes").vocabulary = "coco_80"
    (record,) = detection_records("my_boxes", training=True)
    assert [e["label"] for e in record["annotations"]] == [8]
    file.unlink()
    with pytest.raises(InputError, match="boxes.json is missing; correct its registration"):
        detection_records("my_boxes")


def test_classes_that_would_get_each_others_boxes_are_refused(tmp_path, registered):
    registered.append("my_pets")
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "pony"}]
    write(tmp_path, "boxes.json", named("a"), [annotation(0, 1)], categories)
    register_coco_instances("my_pets", {}, str(tmp_path / "boxes.json"), str(tmp_path))
    words = tmp_path / "words.json"
    MetadataCatalog.get("my_pets").vocabulary = str(words)

    words.write_text('["cat", "dog|puppy", "horse"]')  # a list counts from 0
    message = 'category 1 is "cat", but class 1 .* is "dog": give each class its "dataset_id"'
    with pytest.raises(InputError, match=message):
        detection_records("my_pets")

    # Other names for the file's own are fine.
    classes = [
        {"dataset_id": number, "names": [name]}
        for number, name in enumerate(["kitty", "dog", "x"], 1)
    ]
    words.write_text(json.dumps({"classes": classes}))
    (record,) = detection_records("my_pets")
    assert [e["label"] for e in record["annotations"]] == [0]


def test_records_of_the_catalogue_are_detectron2s(root):
    write_ov_coco(root, annotation(0, 9), images=("a",))
    (record,) = DatasetCatalog.get("ov_coco_train")
    (entry,) = record["annotations"]
    assert entry == {
        "bbox": [1, 2, 31, 42],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": load_vocabulary("ov_coco_65").names.index("boat"),
        "segmentation": [[1, 2, 31, 2, 31, 42]],
        "iscrowd": 0,
    }


def test_real_coco_has_its_objects(data_dir, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_dir))
    records = detection_records("transfer_coco_val")
    content = json.loads((data_dir / "coco/annotations/instances_val2017.json").read_text())
    objects = sum(not entry["iscrowd"] for entry in content["annotations"])
    assert len(records) == 50 and objects == 360
    assert sum(len(record["annotations"]) for record in records) == objects


def test_mini_worlds_have_boxes_of_things_and_train_on_the_seen_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path))
    make_worlds(tmp_path, WorldSize(train=1, val=3, base=4), processes=1)
    things = load_vocabulary("mini_things")
    base = load_vocabulary("mini_base")
    records = detection_records("mini_base_boxes", training=True, masks=True)
    names = {things.names[e["label"]] for record in records for e in record["annotations"]}
    assert len(records) == 4
    assert names <= {e.names[0] for e in base.classes if e.isthing} and len(names) > 3
    for name, images in (("mini_val_boxes", 3), ("mini2_val_boxes", 3)):
        records = detection_records(name)
        assert len(records) == images and all(record["annotations"] for record in records)
