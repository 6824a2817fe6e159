"""Names lead to files, and a name or file that is not there to an error that says what to do."""

from __future__ import annotations

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_coco_panoptic

from clipself_seg.data.datasets.records import (
    captioned_records,
    distillation_records,
    region_records,
    region_text_files,
    region_text_records,
    register_datasets,
    vocabulary_name,
)
from clipself_seg.data.datasets.table import DATASETS
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.errors import InputError


@pytest.fixture
def mini_root(tmp_path, monkeypatch):
    """A mini world with the annotations of one image, without the image."""
    folder = tmp_path / "mini"
    for name in ("annotations", "train", "panoptic_train"):
        (folder / name).mkdir(parents=True)
    images = [{"id": 3, "file_name": "3.png", "width": 20, "height": 20}]
    box = {"image_id": 3, "bbox": [1, 2, 3, 4]}
    segments = [{"id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}]
    entry = {"image_id": 3, "file_name": "3.png", "segments_info": segments}
    said = {"image_id": 3, "caption": "a dog"}
    annotations = {"instances": box, "proposals": box, "panoptic": entry, "captions": said}
    for name, annotation in annotations.items():
        content = {"images": images, "annotations": [annotation]}
        (folder / "annotations" / f"{name}_train.json").write_text(json.dumps(content))
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path))
    return tmp_path


def test_all_names_are_in_detectron2s_catalogue_once():
    assert DATASETS.keys() <= set(DatasetCatalog.list())
    register_datasets()
    assert MetadataCatalog.get("coco_2017_val_panoptic").evaluator_type == "coco_panoptic_seg"


def test_detectron2s_own_names_keep_their_files():
    """The table repeats Detectron2's layout for names that both have; here they are compared."""
    shared = ["coco_2017_train", "coco_2017_val", "lvis_v1_train"]
    for name in shared:
        metadata = MetadataCatalog.get(name)
        assert metadata.json_file.endswith(DATASETS[name].annotations)
        assert metadata.image_root.endswith(DATASETS[name].images)
    for name in ("coco_2017_train_panoptic", "coco_2017_val_panoptic"):
        metadata = MetadataCatalog.get(name)
        assert metadata.panoptic_json.endswith(DATASETS[name].annotations)
        assert metadata.panoptic_root.endswith(DATASETS[name].panoptic_root)
        assert metadata.evaluator_type == DATASETS[name].evaluator


def test_grid_and_proposals_read_the_same_pictures(mini_root):
    (record,) = distillation_records(["mini_train"], "grid")
    assert record["file_name"] == str(mini_root / "mini/train/3.png")
    assert "proposals" not in record
    (record,) = distillation_records(["mini_train_proposals"], "proposals")
    assert record["proposals"].tolist() == [[1, 2, 4, 6]]


def write_nouns(root, *names):
    """The mini world's boxes with nouns: one box of the last one."""
    path = root / "mini/annotations/proposals_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= {"category_id": len(names)}
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    target = path.with_name("region_text_train.json")
    target.write_text(json.dumps(content | {"categories": categories}))
    return target


def test_boxes_with_nouns_are_read_as_such_and_as_proposals(mini_root, registered):
    write_nouns(mini_root, "dog", "grass")
    (record,), nouns = region_text_records(["mini_train_region_text"])
    assert nouns == ("dog", "grass") and record["labels"].tolist() == [1]
    (boxes,) = distillation_records(["mini_train_region_text"], "proposals")
    assert boxes["proposals"].tolist() == record["proposals"].tolist() == [[1, 2, 4, 6]]
    mine = str(write_nouns(mini_root, "dog", "grass").rename(mini_root / "mine.json"))
    register_coco_instances("mine", {}, mine, str(mini_root))
    registered.append("mine")
    write_nouns(mini_root, "dog", "sky")
    assert len(region_text_records(["mine", "mine"]).records) == 2
    with pytest.raises(
        InputError, match='nouns of "mini_train_region_text" are not those of "mine"'
    ):
        region_text_records(["mine", "mini_train_region_text"])


def test_the_one_category_of_proposals_is_no_noun(mini_root):
    write_nouns(mini_root, "object").rename(mini_root / "mini/annotations/proposals_train.json")
    for name in ("mini_train_proposals", "mini_train_captions", "lvis_v1_train_proposals"):
        with pytest.raises(InputError, match=f'"{name}" is no data set of boxes with nouns: did'):
            region_text_records([name])
    # Classes of instances are nouns.
    write_nouns(mini_root, "dog").rename(mini_root / "mini/annotations/instances_train.json")
    assert region_text_records(["mini_train"]).nouns == ("dog",)


def test_files_of_boxes_with_nouns_need_not_be_there_but_their_images(
    mini_root, registered, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(mini_root))
    register_coco_instances("mine", {}, "nouns.json", str(mini_root))
    register_coco_instances("lost", {}, "nouns.json", "nowhere")
    registered += ["mine", "lost"]
    assert region_text_files("mine") == ("nouns.json", str(mini_root))
    annotations, images = region_text_files("mini_train_region_text")
    assert images == str(mini_root / "mini/train")
    assert annotations == str(mini_root / "mini/annotations/region_text_train.json")
    for name in ("lost", "coco_2017_train_region_text"):
        with pytest.raises(InputError, match=f'"{name}": .* is missing'):
            region_text_files(name)
    with pytest.raises(InputError, match='"mini_train" is no data set of boxes with nouns'):
        region_text_files("mini_train")


def test_missing_nouns_name_the_tool_that_writes_them(mini_root, tmp_path):
    with pytest.raises(InputError, match="region_text_train.json is missing.*data region-text"):
        region_text_records(["mini_train_region_text"])


def test_data_sets_are_joined_in_order(mini_root):
    records = distillation_records(["mini_train", "mini_train_panoptic"], "grid")
    assert [record["image_id"] for record in records] == [3, 3]


def test_our_names_also_load_from_the_catalogue(mini_root):
    assert DatasetCatalog.get("mini_train_proposals")[0]["proposals"].shape == (1, 4)
    assert DatasetCatalog.get("mini_train_panoptic")[0]["segments_info"][0]["category_id"] == 1
    write_nouns(mini_root, "dog", "grass")
    assert DatasetCatalog.get("mini_train_region_text")[0]["labels"].tolist() == [1]


def test_captions_are_read_by_the_name_of_their_data_set_or_of_a_users_own(mini_root, registered):
    (record,) = captioned_records(["mini_train_captions"])
    assert record["captions"] == ["a dog"] and record["image_id"] == 3
    assert DatasetCatalog.get("mini_train_captions") == [record]
    json_file = str(mini_root / "mini/annotations/captions_train.json")
    register_coco_instances("my_captions", {}, json_file, str(mini_root / "mini/train"))
    registered.append("my_captions")
    assert captioned_records(["my_captions"]) == [record]
    with pytest.raises(
        InputError, match='"mini_train" has no captions: did you mean "mini_train_c'
    ):
        captioned_records(["mini_train"])


def test_a_users_own_data_set_works_under_its_name(mini_root, registered):
    json_file = str(mini_root / "mini/annotations/instances_train.json")
    for name, folder in {"my_photos": str(mini_root), "my_lost_photos": "nowhere"}.items():
        register_coco_instances(name, {"vocabulary": "lvis_v1_1203"}, json_file, folder)
        registered.append(name)
    (record,) = distillation_records(["my_photos"], "proposals")
    assert record["file_name"] == str(mini_root / "3.png")
    assert vocabulary_name("my_photos") == "lvis_v1_1203"
    with pytest.raises(InputError, match='"my_lost_photos": nowhere is missing'):
        distillation_records(["my_lost_photos"], "grid")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("coco_2017_val_panoptic", 'take "coco_2017_val"$'),
        ("coco_2017_train_panoptic", 'take "coco_2017_train" or "coco_2017_train_proposals"$'),
        ("my_panoptic", "take one that register_coco_instances made"),
    ],
)
def test_a_panoptic_set_as_proposals_is_answered_with_a_set_of_boxes(
    mini_root, registered, name, advice
):
    folder = str(mini_root / "mini")
    json_file = f"{folder}/annotations/panoptic_train.json"
    register_coco_panoptic("my_panoptic", {}, folder, folder, json_file)
    registered.append("my_panoptic")
    with pytest.raises(InputError, match=f'"{name}" is panoptic.* no list of boxes.* {advice}'):
        distillation_records([name], "proposals")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match='did you mean "coco_2017_train"'):
        distillation_records(["coco_2017_trian"], "grid")
    with pytest.raises(InputError, match='did you mean "mini_val_panoptic"'):
        vocabulary_name("mini_val_panoptik")


def test_missing_files_name_the_variable_and_the_way_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path))
    for name, words in {
        "coco_2017_train": "DETECTRON2_DATASETS .*cocodataset.org",
        "coco_2017_train_proposals": "DETECTRON2_DATASETS .*coco_proposals.json",
        "lvis_v1_train": "DETECTRON2_DATASETS .*lvisdataset.org",
        "mini_val": "CLIPSELF_SEG_MINI .*data mini-world",
    }.items():
        with pytest.raises(InputError, match=f'"{name}": .* is missing; set {words}'):
            distillation_records([name], "grid")


def test_region_recognition_wants_a_panoptic_data_set(mini_root):
    words = Vocabulary.from_names(["circle"])
    with pytest.raises(InputError, match='did you mean "mini_train_panoptic"'):
        region_records("mini_train", words)


def test_categories_outside_the_vocabulary_are_refused_at_once(mini_root):
    with pytest.raises(InputError, match=r"panoptic_train.json: category ids \[1\]"):
        region_records("mini_train_panoptic", Vocabulary.from_names(["circle"]))
    two = Vocabulary.from_names(["circle", "square"])
    assert len(region_records("mini_train_panoptic", two)) == 1


def test_the_real_small_coco_loads(data_dir, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_dir))
    assert len(distillation_records(["coco_2017_train"], "grid")) == 60
    boxes = distillation_records(["coco_2017_train"], "proposals")
    assert sum(len(record["proposals"]) for record in boxes) == 522
    words = load_vocabulary(vocabulary_name("coco_2017_val_panoptic"))
    records = region_records("coco_2017_val_panoptic", words)
    assert len(records) == 50
    assert sum(len(record["segments_info"]) for record in records) == 544
