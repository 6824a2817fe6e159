"""Names lead to files, classes and records, and what is not there to an error that says what to do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_coco_panoptic
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from clipself_seg.data.datasets.records import (
    captioned_records,
    detection_records,
    distillation_records,
    find_dataset,
    panoptic_set_records,
    region_records,
    region_text_files,
    region_text_records,
    register_datasets,
    sem_seg_records,
    vocabulary_name,
)
from clipself_seg.data.datasets.table import (
    DATASETS,
    DetectionSet,
    PanopticSet,
    SemSegSet,
    ade_parent,
)
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary, seen_by_synonym
from clipself_seg.errors import InputError
from clipself_seg.mini.writer import WorldSize, make_worlds


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


def test_every_named_vocabulary_but_the_generated_ones_is_shipped():
    names = {files.vocabulary for files in DATASETS.values()} - {""}
    assert all(len(load_vocabulary(name)) > 18 for name in names)


def test_a_data_set_without_vocabulary_says_how_to_give_one():
    with pytest.raises(InputError, match="coco_2017_train_proposals.*vocabulary"):
        vocabulary_name("coco_2017_train_proposals")


def test_a_set_of_boxes_is_answered_with_the_panoptic_one_to_evaluate():
    with pytest.raises(
        InputError, match='no vocabulary here: did you mean "coco_2017_val_panoptic"'
    ):
        vocabulary_name("coco_2017_val")


SEM_SEG_NAMES = {
    "coco_2017_train_stuff_all_sem_seg": ("coco-stuff", 171, 255),
    "coco_2017_test_stuff_all_sem_seg": ("coco-stuff", 171, 255),
    "ade20k_150_test_sem_seg": ("ADEChallengeData2016", 150, 255),
    "ade20k_full_sem_seg_freq_val_all": ("ADE20K_2021_17_01", 847, 65535),
    "context_59_test_sem_seg": ("VOCdevkit/VOC2010", 59, 255),
    "context_459_test_sem_seg": ("VOCdevkit/VOC2010", 459, 459),
    "voc_2012_test_sem_seg": ("VOCdevkit/VOC2012", 20, 255),
    "voc_2012_test_background_sem_seg": ("VOCdevkit/VOC2012", 21, 255),
}


@pytest.mark.parametrize("name", SEM_SEG_NAMES)
def test_semantic_sets_are_in_detectron2s_catalogue_with_their_classes(name):
    folder, labels, ignore_label = SEM_SEG_NAMES[name]
    files, metadata = find_dataset(name, SemSegSet), MetadataCatalog.get(name)
    assert folder in metadata.image_root and folder in metadata.sem_seg_root
    assert len(metadata.stuff_classes) == labels
    assert files.label_count(len(load_vocabulary(files.vocabulary))) == labels
    assert metadata.ignore_label == files.ignore_label == ignore_label
    background = name == "voc_2012_test_background_sem_seg"
    assert metadata.evaluator_type == ("sem_seg_background" if background else "sem_seg")
    assert files.background == (20 if background else None)
    assert vocabulary_name(name) == files.vocabulary


@pytest.fixture
def semantic_root(tmp_path, monkeypatch):
    """The training images 1, 2, 3 of a mini world, and label maps of 2, 3, 4."""
    for folder, suffix, stems in (("train", "jpg", "321"), ("stuffthingmaps/train", "png", "432")):
        (tmp_path / "mini" / folder).mkdir(parents=True)
        for stem in stems:
            (tmp_path / "mini" / folder / f"{stem}.{suffix}").touch()
    (tmp_path / "mini/train/.5.jpg.x.part").touch()
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(tmp_path))
    return tmp_path / "mini"


def test_pictures_and_label_maps_are_paired_by_name_and_the_rest_is_counted(semantic_root, caplog):
    records = sem_seg_records("mini_train_sem_seg")
    assert [record["image_id"] for record in records] == ["2", "3"]
    assert records[0]["file_name"] == str(semantic_root / "train/2.jpg")
    assert records[0]["sem_seg_file_name"] == str(semantic_root / "stuffthingmaps/train/2.png")
    assert "1 images have no label map and 1 label maps no image; 2 pairs" in caplog.text
    assert DatasetCatalog.get("mini_train_sem_seg") == records


def test_without_label_maps_the_command_that_writes_them_is_named(semantic_root):
    with pytest.raises(InputError, match="train_base is missing; run `clipself-seg data mini"):
        sem_seg_records("mini_train_base_sem_seg")
    for path in (semantic_root / "stuffthingmaps/train").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no \\*.jpg of .*train has .*data mini-world"):
        sem_seg_records("mini_train_sem_seg")


def test_ones_own_semantic_set_works_under_its_name(semantic_root, registered):
    images, labels = semantic_root / "train", semantic_root / "stuffthingmaps/train"
    pairs = [{"file_name": f"{images}/{n}.jpg", "sem_seg_file_name": f"{n}.png"} for n in "32"]
    DatasetCatalog.register("my_scenes", lambda: pairs)
    registered.append("my_scenes")
    metadata = MetadataCatalog.get("my_scenes")
    metadata.set(image_root=str(images), sem_seg_root=str(labels), ignore_label=7)
    with pytest.raises(InputError, match='"my_scenes" has no "vocabulary"'):
        find_dataset("my_scenes", SemSegSet)
    metadata.vocabulary = "voc_20"
    files = find_dataset("my_scenes", SemSegSet)
    assert (files.path(files.images), files.path(files.annotations)) == (images, labels)
    assert (files.vocabulary, files.ignore_label, files.background) == ("voc_20", 7, None)
    assert [record["image_id"] for record in sem_seg_records("my_scenes")] == ["2", "3"]
    MetadataCatalog.get("my_scenes").__dict__["sem_seg_root"] = "nowhere"
    with pytest.raises(InputError, match='"my_scenes": nowhere is missing; correct'):
        sem_seg_records("my_scenes")


def test_a_name_that_is_not_semantic_suggests_the_nearest():
    with pytest.raises(InputError, match='did you mean "ade20k_150_test_sem_seg"'):
        find_dataset("ade20k_150_sem_seg", SemSegSet)
    with pytest.raises(InputError, match='did you mean "mini_val_sem_seg"'):
        find_dataset("mini_val", SemSegSet)


COCO, ADE = "coco_2017_val_panoptic_with_sem_seg", "ade20k_panoptic_val"
CITYSCAPES, VISTAS = "cityscapes_fine_panoptic_val", "mapillary_vistas_panoptic_val"


@pytest.fixture
def panoptic_root(tmp_path, monkeypatch):
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


def test_records_name_everything_and_keep_the_files_category_ids(panoptic_root):
    (record,) = panoptic_set_records("mini_train_base_panoptic")
    assert record == {
        "file_name": str(panoptic_root / "base/3.jpg"),
        "image_id": 3,
        "pan_seg_file_name": str(panoptic_root / "panoptic_base/3.png"),
        "panoptic_json": str(panoptic_root / "annotations/panoptic_base.json"),
        "sem_seg_file_name": str(panoptic_root / "stuffthingmaps/base/3.png"),
        "segments_info": [{"id": 9, "category_id": 2, "bbox": [0, 0, 9, 9]}],
        "covered_stuff": False,
    }


def test_the_catalogues_records_have_indices_and_tell_things(panoptic_root):
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


def test_detectron2_draws_a_record_of_the_mini_world(panoptic_root):
    name = "mini_train_base_panoptic"
    Image.new("RGB", (32, 24)).save(panoptic_root / "base/3.jpg")
    (panoptic_root / "stuffthingmaps/base").mkdir(parents=True)
    Image.new("L", (32, 24), 255).save(panoptic_root / "stuffthingmaps/base/3.png")
    pixels = np.zeros((24, 32, 3), dtype=np.uint8)
    pixels[4:20, 4:20, 0] = 9
    Image.fromarray(pixels).save(panoptic_root / "panoptic_base/3.png")
    texts, changed = drawn(DatasetCatalog.get(name)[0], name)
    vocabulary = load_vocabulary("mini_base")
    assert texts == [vocabulary.names[vocabulary.dataset_id_to_index[2]]] and changed


def test_what_a_task_reads_has_to_be_there(panoptic_root, tmp_path, monkeypatch):
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


def test_a_category_that_the_vocabulary_lacks_is_refused_at_once(panoptic_root):
    path = panoptic_root / "annotations/panoptic_base.json"
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


def test_ones_own_set_works_under_its_name(panoptic_root, registered):
    json_file = str(panoptic_root / "annotations/panoptic_base.json")
    folders = str(panoptic_root / "base"), str(panoptic_root / "panoptic_base")
    register_coco_panoptic("my_scenes", {}, *folders, json_file)
    registered.append("my_scenes")
    with pytest.raises(InputError, match='"my_scenes" has no "vocabulary" in its metadata: set Me'):
        find_dataset("my_scenes", PanopticSet)
    MetadataCatalog.get("my_scenes").vocabulary = "mini"
    files = find_dataset("my_scenes", PanopticSet)
    assert files.path(files.images) == panoptic_root / "base" and files.vocabulary == "mini"
    (record,) = panoptic_set_records("my_scenes")
    assert record["file_name"] == str(panoptic_root / "base/3.jpg")
    assert "sem_seg_file_name" not in record
    with pytest.raises(InputError, match='"my_scenes" has no files for "semantic": set Met'):
        panoptic_set_records("my_scenes", ["semantic"])
    (panoptic_root / "base").rmdir()
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


def test_the_real_panoptic_coco_loads(data_dir, monkeypatch):
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
