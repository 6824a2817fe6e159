"""Panoptic names lead to files and to metadata that Detectron2's evaluators understand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from clipself_seg.data.datasets.records import (
    find_dataset,
    panoptic_set_records,
    register_datasets,
)
from clipself_seg.data.datasets.table import DATASETS, PanopticSet, ade_parent
from clipself_seg.data.vocabulary import load_vocabulary, seen_by_synonym
from clipself_seg.errors import InputError

COCO, ADE = "coco_2017_val_panoptic_with_sem_seg", "ade20k_panoptic_val"
CITYSCAPES, VISTAS = "cityscapes_fine_panoptic_val", "mapillary_vistas_panoptic_val"


@pytest.fixture
def mini_root(tmp_path, monkeypatch):
    """The base split of a mini world: the annotations of one image, without the image."""
    folder = tmp_path / "mini"
    for name in ("annotations", "base", "panoptic_base"):
        (folder / name).mkdir(parents=True)
    segments = [{"id": 9, "category_id": 2, "bbox": [0, 0, 9, 9]}]
    entry = {"image_id": 3, "file_name": "3.png", "segments_info": segments}
    content = {"images": [{"id": 3, "file_name": "3.jpg"}], "annotations": [entry]}
    (folder / "annotations/panoptic_base.json").write_text(json.dumps(content))
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path))
    return folder


def test_names_are_in_the_catalogue_once_and_detectron2s_own_are_left_alone():
    assert DATASETS.keys() <= set(DatasetCatalog.list())
    register_datasets()
    assert len(MetadataCatalog.get("coco_2017_val_panoptic").thing_classes) == 133


@pytest.mark.parametrize(
    "name, classes, things",
    [(COCO, 133, 80), (ADE, 150, 100), (VISTAS, 65, 37), ("mini_train_base_panoptic", 32, 24)],
)
def test_metadata_has_all_classes_and_the_things_among_them(name, classes, things):
    metadata, files = MetadataCatalog.get(name), find_dataset(name, PanopticSet)
    vocabulary = load_vocabulary(files.vocabulary)
    thing_map = metadata.thing_dataset_id_to_contiguous_id
    all_map = metadata.stuff_dataset_id_to_contiguous_id
    assert metadata.stuff_classes == list(vocabulary.names) and len(vocabulary) == classes
    assert all_map == vocabulary.dataset_id_to_index
    assert len(metadata.thing_classes) == len(thing_map) == things
    for name_of_thing, (number, index) in zip(metadata.thing_classes, thing_map.items()):
        assert all_map[number] == index and vocabulary.names[index] == name_of_thing
        assert vocabulary.classes[index].isthing is True
    assert (metadata.ignore_label, metadata.label_divisor) == (255, 1000)
    assert metadata.evaluator_type == files.evaluator
    for key in ("image_root", "panoptic_root", "panoptic_json", "sem_seg_root", "json_file"):
        assert metadata.get(key)


def test_things_of_coco_are_numbered_from_0_and_those_of_ade_keep_their_place():
    of_coco = MetadataCatalog.get(COCO).thing_dataset_id_to_contiguous_id
    assert list(of_coco.values()) == list(range(80)) and of_coco[90] == 79
    of_ade = MetadataCatalog.get(ADE).thing_dataset_id_to_contiguous_id
    assert all(number == index for number, index in of_ade.items())
    assert list(of_ade)[:4] == [7, 8, 10, 12] and list(of_ade)[-1] == 149


@pytest.mark.parametrize(
    "name, classes, texts, seen, things, seen_things",
    [
        (COCO, 133, 254, 133, 80, 80),
        (ADE, 150, 403, 64, 100, 44),
        (CITYSCAPES, 19, 60, 17, 8, 7),
        # The published list has 153 texts.
        (VISTAS, 65, 135, 26, 37, 13),
    ],
)
def test_vocabularies_have_the_published_sizes_and_overlap_with_training(
    name, classes, texts, seen, things, seen_things
):
    train = load_vocabulary(find_dataset(COCO, PanopticSet).vocabulary)
    words = load_vocabulary(find_dataset(name, PanopticSet).vocabulary)
    shown = seen_by_synonym(words, train)
    assert len(words) == classes and sum(len(entry.names) for entry in words.classes) == texts
    assert (shown.sum(), words.thing.sum(), (shown & words.thing).sum()) == (
        seen,
        things,
        seen_things,
    )
    if name == CITYSCAPES:
        assert [words.names[index] for index in np.flatnonzero(~shown)] == ["pole", "rider"]


def test_cityscapes_classes_are_detectron2s_in_number_order_and_kind():
    words = load_vocabulary(find_dataset(CITYSCAPES, PanopticSet).vocabulary)
    metadata = MetadataCatalog.get(CITYSCAPES)
    things, stuff = (
        metadata.get(f"{kind}_dataset_id_to_contiguous_id") for kind in ("thing", "stuff")
    )
    assert words.dataset_id_to_index == things | stuff
    assert set(things.values()) == set(np.flatnonzero(words.thing).tolist())
    assert words.names == tuple(metadata.stuff_classes)


def test_records_name_everything_and_keep_the_files_category_ids(mini_root):
    (record,) = panoptic_set_records("mini_train_base_panoptic")
    assert record == {
        "file_name": str(mini_root / "base/3.jpg"),
        "image_id": 3,
        "pan_seg_file_name": str(mini_root / "panoptic_base/3.png"),
        "panoptic_json": str(mini_root / "annotations/panoptic_base.json"),
        "sem_seg_file_name": str(mini_root / "stuffthingmaps/base/3.png"),
        "segments_info": [{"id": 9, "category_id": 2, "bbox": [0, 0, 9, 9]}],
        "covered_stuff": False,
    }


def test_the_catalogues_records_have_indices_and_tell_things(mini_root):
    (raw,) = panoptic_set_records("mini_train_base_panoptic")
    (record,) = DatasetCatalog.get("mini_train_base_panoptic")
    index = MetadataCatalog.get("mini_train_base_panoptic").stuff_dataset_id_to_contiguous_id[2]
    (info,) = record.pop("segments_info")
    assert info == {"id": 9, "category_id": index, "isthing": True, "bbox": [0, 0, 9, 9]}
    assert record == {key: value for key, value in raw.items() if key != "segments_info"}


def drawn(record, name):
    """Texts that Detectron2 draws on the image of a record, and whether any pixel changed."""
    image = np.asarray(Image.open(record["file_name"]).convert("RGB"))
    visualizer = Visualizer(image, MetadataCatalog.get(name), scale=1.0)
    output = visualizer.draw_dataset_dict(record)
    return [text.get_text() for text in output.ax.texts], (output.get_image() != image).any()


def test_detectron2_draws_a_record_of_the_mini_world(mini_root):
    name = "mini_train_base_panoptic"
    Image.new("RGB", (32, 24)).save(mini_root / "base/3.jpg")
    (mini_root / "stuffthingmaps/base").mkdir(parents=True)
    Image.new("L", (32, 24), 255).save(mini_root / "stuffthingmaps/base/3.png")
    pixels = np.zeros((24, 32, 3), dtype=np.uint8)
    pixels[4:20, 4:20, 0] = 9
    Image.fromarray(pixels).save(mini_root / "panoptic_base/3.png")
    texts, changed = drawn(DatasetCatalog.get(name)[0], name)
    vocabulary = load_vocabulary("mini_base")
    assert texts == [vocabulary.names[vocabulary.dataset_id_to_index[2]]] and changed


def test_what_a_task_reads_has_to_be_there(mini_root, tmp_path, monkeypatch):
    name = "mini_train_base_panoptic"
    for tasks, message in (
        (("semantic",), "stuffthingmaps/base is missing; run `clipself-seg data mini-world`"),
        (("panoptic", "instances"), "instances_base.json is missing; run"),
    ):
        with pytest.raises(InputError, match=message):
            panoptic_set_records(name, tasks)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "empty"))
    with pytest.raises(InputError, match="DETECTRON2_DATASETS .*cocodataset.org"):
        panoptic_set_records(COCO)
    (tmp_path / "empty/ADEChallengeData2016/images/validation").mkdir(parents=True)
    with pytest.raises(
        InputError, match="run `clipself-seg data prepare ade20k_panoptic --splits v"
    ):
        panoptic_set_records(ADE)


def test_a_category_that_the_vocabulary_lacks_is_refused_at_once(mini_root):
    path = mini_root / "annotations/panoptic_base.json"
    path.write_text(path.read_text().replace('"category_id": 2', '"category_id": 1'))
    with pytest.raises(InputError, match=r"panoptic_base.json: category ids \[1\]"):
        panoptic_set_records("mini_train_base_panoptic")


@pytest.mark.parametrize(
    "name, hint",
    [
        ("coco_2017_val_panoptic", COCO),
        ("ade20k_panoptic_vla", ADE),
        ("mini_val_sem_seg", "mini_val_panoptic_with_sem_seg"),
    ],
)
def test_a_name_that_is_not_panoptic_suggests_the_nearest(name, hint):
    with pytest.raises(InputError, match=f'no data set "{name}" .* did you mean "{hint}"'):
        find_dataset(name, PanopticSet)


def test_ones_own_set_works_under_its_name(mini_root, registered):
    json_file = str(mini_root / "annotations/panoptic_base.json")
    folders = str(mini_root / "base"), str(mini_root / "panoptic_base")
    register_coco_panoptic("my_scenes", {}, *folders, json_file)
    registered.append("my_scenes")
    with pytest.raises(InputError, match='"my_scenes" has no "vocabulary" in its metadata: set Me'):
        find_dataset("my_scenes", PanopticSet)
    MetadataCatalog.get("my_scenes").vocabulary = "mini"
    files = find_dataset("my_scenes", PanopticSet)
    assert files.path(files.images) == mini_root / "base" and files.vocabulary == "mini"
    (record,) = panoptic_set_records("my_scenes")
    assert record["file_name"] == str(mini_root / "base/3.jpg")
    assert "sem_seg_file_name" not in record
    with pytest.raises(InputError, match='"my_scenes" has no files for "semantic": set Met'):
        panoptic_set_records("my_scenes", ["semantic"])
    (mini_root / "base").rmdir()
    with pytest.raises(InputError, match='"my_scenes": .*base is missing; correct its registr'):
        panoptic_set_records("my_scenes")


def test_ade_is_found_with_and_without_odises_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    files = find_dataset(ADE, PanopticSet)
    assert files.path(files.images) == tmp_path / "ADEChallengeData2016/images/validation"
    (tmp_path / "ade/ADEChallengeData2016").mkdir(parents=True)
    assert files.path(files.images) == tmp_path / "ade/ADEChallengeData2016/images/validation"
    assert ade_parent(tmp_path) == tmp_path / "ade"
    (tmp_path / "ADEChallengeData2016").mkdir()
    assert ade_parent(tmp_path) == tmp_path


def test_the_real_small_coco_loads(data_dir, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_dir))
    records = panoptic_set_records(COCO, ["panoptic", "instances"])
    assert len(records) == 50 and sum(len(record["segments_info"]) for record in records) == 544
    assert all(np.isscalar(record["height"]) for record in records)
    with pytest.raises(
        InputError, match="run `clipself-seg data prepare coco_panoptic_semseg --spl"
    ):
        panoptic_set_records(COCO, ["semantic"])


def test_detectron2_draws_real_records(data_dir, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_dir))
    (raw, *_), (record, *_) = panoptic_set_records(COCO), DatasetCatalog.get(COCO)
    del record["sem_seg_file_name"]  # which a tool writes
    texts, changed = drawn(record, COCO)
    vocabulary = load_vocabulary(find_dataset(COCO, PanopticSet).vocabulary)
    expected = {
        vocabulary.names[vocabulary.dataset_id_to_index[info["category_id"]]]
        for info in raw["segments_info"]
    }
    assert {text.removesuffix("|crowd") for text in texts} == expected and changed
