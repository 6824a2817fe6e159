"""Names lead to files, classes and records, and what is not there to an error that says what to do."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_coco_panoptic
from detectron2.structures import BoxMode

from clipself_seg.data.datasets.records import (
    captioned_records,
    detection_records,
    distillation_records,
    find_dataset,
    panoptic_set_records,
    region_records,
    region_text_records,
    register_datasets,
    sem_seg_records,
)
from clipself_seg.data.datasets.table import DATASETS, DetectionSet, PanopticSet, SemSegSet
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError

COCO, ADE = "coco_2017_val_panoptic_with_sem_seg", "ade20k_panoptic_val"
CITYSCAPES, VISTAS = "cityscapes_fine_panoptic_val", "mapillary_vistas_panoptic_val"
BASE = "mini_train_base_panoptic"
SEGMENT = {"id": 9, "category_id": 2, "bbox": [0, 0, 9, 9]}


@pytest.fixture
def mini(tmp_path, datasets_root, worlds_root):
    """Folder of a mini world: annotations of one image of the splits train and base, without the image."""
    folder = tmp_path / "mini"
    for name in ("annotations", "train", "panoptic_train", "base", "panoptic_base"):
        (folder / name).mkdir(parents=True)
    box = {"image_id": 3, "bbox": [1, 2, 3, 4]}
    entry = {"image_id": 3, "file_name": "3.png", "segments_info": [SEGMENT]}
    captions = {"image_id": 3, "caption": "a dog"}
    for name, annotation in (
        ("instances_train", box),
        ("proposals_train", box),
        ("panoptic_train", entry),
        ("panoptic_base", entry),
        ("captions_train", captions),
    ):
        content = {"images": [{"id": 3, "file_name": "3.jpg"}], "annotations": [annotation]}
        (folder / f"annotations/{name}.json").write_text(json.dumps(content))
    return folder


def write_nouns(mini, *names, kind="region_text"):
    """The mini world's boxes with nouns: one box of the last one."""
    content = json.loads((mini / "annotations/proposals_train.json").read_text())
    content["annotations"][0] |= {"category_id": len(names)}
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    path = mini / f"annotations/{kind}_train.json"
    path.write_text(json.dumps(content | {"categories": categories}))
    return path


def grid(name):
    return distillation_records([name], "grid")


def boxes(name):
    return distillation_records([name], "proposals")


def of_kind(kind):
    return functools.partial(find_dataset, kind=kind)


def nouns(name):
    return region_text_records([name])


def captions(name):
    return captioned_records([name])


def test_our_names_are_in_detectron2s_catalogue_once_with_what_it_asks_for():
    assert DATASETS.keys() <= set(DatasetCatalog.list())
    register_datasets()
    names = {files.vocabulary for files in DATASETS.values()} - {""}
    assert all(len(Vocabulary.load(name)) >= 10 for name in names)
    assert MetadataCatalog.get("coco_2017_val_panoptic").evaluator_type == "coco_panoptic_seg"
    assert len(MetadataCatalog.get("coco_2017_val_panoptic").thing_classes) == 133
    metadata = MetadataCatalog.get("ov_coco_val")
    assert len(metadata.thing_classes) == 65 and metadata.evaluator_type == "coco"
    assert metadata.thing_dataset_id_to_contiguous_id[90] == 64
    assert metadata.json_file.endswith("coco/zero-shot/instances_val2017_all_2.json")
    assert MetadataCatalog.get("ov_lvis_val").evaluator_type == "lvis"
    objects365 = MetadataCatalog.get("transfer_objects365_val").as_dict()
    assert len(objects365["thing_classes"]) == 365
    assert "thing_dataset_id_to_contiguous_id" not in objects365


def test_detectron2s_own_names_keep_their_files():
    """The table repeats Detectron2's layout for names that both have; here they are compared."""
    for name in ("coco_2017_train", "coco_2017_val", "lvis_v1_train"):
        metadata = MetadataCatalog.get(name)
        assert metadata.json_file.endswith(DATASETS[name].annotations)
        assert metadata.image_root.endswith(DATASETS[name].images)
    for name in ("coco_2017_train_panoptic", "coco_2017_val_panoptic"):
        metadata = MetadataCatalog.get(name)
        assert metadata.panoptic_json.endswith(DATASETS[name].annotations)
        assert metadata.panoptic_root.endswith(DATASETS[name].panoptic_root)
        assert metadata.evaluator_type == DATASETS[name].evaluator


@pytest.mark.parametrize(
    "read, name, message",
    [
        (grid, "coco_2017_trian", 'did you mean "coco_2017_train"'),
        (
            boxes,
            "coco_2017_val_panoptic",
            '" has segments, and boxes .* did you mean "coco_2017_val',
        ),
        (
            nouns,
            "mini_train_proposals",
            "has boxes, and nouns or classes are read here: did you mean",
        ),
        (of_kind(PanopticSet), "coco_2017_val_panoptic", f'did you mean "{COCO}"'),
        (of_kind(PanopticSet), "mini_val_sem_seg", '"mini_val_panoptic_with_sem_seg"'),
        (detection_records, "coco_2017_val", "for detection"),
    ],
)
def test_a_name_of_nothing_or_of_another_kind_is_answered_with_the_nearest(
    mini, read, name, message
):
    with pytest.raises(InputError, match=f'"{name}.*{message}'):
        read(name)


@pytest.mark.parametrize(
    "read, name, message",
    [
        (grid, "coco_2017_train", "set DETECTRON2_DATASETS .*cocodataset.org"),
        (grid, "mini_val", "set CLIPSELF_SEG_MINI .*tools/mini.py world"),
        (nouns, "mini_train_region_text", "train.json is missing.*precompute.py region-text"),
        (panoptic_set_records, ADE, "run `python tools/prepare.py ade20k_panoptic --splits val"),
        (
            lambda name: panoptic_set_records(name, ("semantic",)),
            BASE,
            "base is missing; set CLIPS",
        ),
        (
            detection_records,
            "ov_coco_val",
            "run `.*prepare.py ov_coco --splits val2017` once .*json is there .in a clone",
        ),
    ],
)
def test_a_missing_file_is_answered_with_the_command_or_the_archive(mini, read, name, message):
    (mini.parent / "ADEChallengeData2016/images/validation").mkdir(parents=True)
    if name.startswith("ov"):
        (mini.parent / "coco/val2017").mkdir(parents=True)
    with pytest.raises(InputError, match=f'"{name}": .*{message}'):
        read(name)


def test_grid_and_proposals_read_the_same_images_of_all_sets_in_order(mini):
    records = distillation_records(["mini_train", "mini_train_panoptic"], "grid")
    assert [record["file_name"] for record in records] == [str(mini / "train/3.jpg")] * 2
    assert "proposals" not in records[0]
    (record,) = boxes("mini_train_proposals")
    assert record["proposals"].tolist() == [[1, 2, 4, 6]]
    assert DatasetCatalog.get("mini_train_proposals")[0]["proposals"].shape == (1, 4)
    assert DatasetCatalog.get("mini_train_panoptic")[0]["segments_info"][0]["category_id"] == 2


def test_boxes_with_nouns_are_read_as_such_and_as_proposals(mini, catalogue):
    write_nouns(mini, "dog", "grass")
    (record,), names = nouns("mini_train_region_text")
    assert names == ("dog", "grass") and record["labels"].tolist() == [1]
    assert DatasetCatalog.get("mini_train_region_text")[0]["labels"].tolist() == [1]
    (proposed,) = boxes("mini_train_region_text")
    assert proposed["proposals"].tolist() == record["proposals"].tolist() == [[1, 2, 4, 6]]
    mine = str(write_nouns(mini, "dog", "grass").rename(mini / "mine.json"))
    register_coco_instances("mine", {}, mine, str(mini))
    write_nouns(mini, "dog", "sky")
    assert len(region_text_records(["mine", "mine"]).records) == 2
    with pytest.raises(InputError, match='"mini_train_region_text" are not those of "mine"'):
        region_text_records(["mine", "mini_train_region_text"])
    # Classes of instances are nouns.
    write_nouns(mini, "cat", kind="instances")
    assert nouns("mini_train").nouns == ("cat",)


def test_captions_are_read_by_the_name_of_their_data_set_or_of_a_users_own(mini, catalogue):
    (record,) = captions("mini_train_captions")
    assert record["captions"] == ["a dog"] and record["image_id"] == 3
    assert DatasetCatalog.get("mini_train_captions") == [record]
    json_file = str(mini / "annotations/captions_train.json")
    register_coco_instances("my_captions", {}, json_file, str(mini / "train"))
    assert captions("my_captions") == [record]


def test_a_users_own_images_and_boxes_work_under_their_name(mini, catalogue):
    json_file = str(mini / "annotations/instances_train.json")
    for name, folder in {"my_photos": str(mini), "my_lost_photos": "nowhere"}.items():
        register_coco_instances(name, {"vocabulary": "lvis_v1_1203"}, json_file, folder)
    assert boxes("my_photos")[0]["file_name"] == str(mini / "3.jpg")
    with pytest.raises(InputError, match='"my_lost_photos": nowhere is missing'):
        grid("my_lost_photos")


def test_categories_outside_the_vocabulary_are_refused_at_once(mini):
    assert len(region_records("mini_train_panoptic")[1]) == 1
    path = mini / "annotations/panoptic_base.json"
    path.write_text(path.read_text().replace('"category_id": 2', '"category_id": 1'))
    with pytest.raises(InputError, match=r"panoptic_base.json: category ids \[1\]"):
        panoptic_set_records(BASE)


def test_the_real_small_coco_loads(real_datasets):
    assert len(grid("coco_2017_train")) == 60
    assert sum(len(record["proposals"]) for record in boxes("coco_2017_train")) == 522
    records = panoptic_set_records(COCO, ["panoptic", "instances"])
    for segments in (region_records("coco_2017_val_panoptic")[1], records):
        assert len(segments) == 50
        assert sum(len(record["segments_info"]) for record in segments) == 544
    assert all(np.isscalar(record["height"]) for record in records)
    with pytest.raises(InputError, match="prepare.py coco_panoptic_semseg --splits"):
        panoptic_set_records(COCO, ["semantic"])
    content = json.loads((real_datasets / "coco/annotations/instances_val2017.json").read_text())
    objects = sum(not entry["iscrowd"] for entry in content["annotations"])
    found = detection_records("transfer_coco_val")
    assert len(found) == 50 and objects == 360
    assert sum(len(record["annotations"]) for record in found) == objects


SEM_SEG_NAMES = {
    "coco_2017_test_stuff_all_sem_seg": ("coco-stuff", 171, 255),
    "ade20k_full_sem_seg_freq_val_all": ("ADE20K_2021_17_01", 847, 65535),
    "context_459_test_sem_seg": ("VOCdevkit/VOC2010", 459, 459),
    "voc_2012_test_background_sem_seg": ("VOCdevkit/VOC2012", 21, 255),
    "mini_val_background_sem_seg": ("mini", 7, 255),
}
BACKGROUND = {"voc_2012_test_background_sem_seg": 20, "mini_val_background_sem_seg": 6}


@pytest.mark.parametrize("name", SEM_SEG_NAMES)
def test_semantic_sets_are_in_detectron2s_catalogue_with_their_classes(name):
    folder, labels, ignore_label = SEM_SEG_NAMES[name]
    files, metadata = find_dataset(name, SemSegSet), MetadataCatalog.get(name)
    assert folder in metadata.image_root and folder in metadata.sem_seg_root
    assert len(metadata.stuff_classes) == labels
    assert len(files.metadata()["stuff_classes"]) == labels
    assert metadata.ignore_label == files.ignore_label == ignore_label
    background = name in BACKGROUND
    assert metadata.evaluator_type == ("sem_seg_background" if background else "sem_seg")
    assert (metadata.stuff_classes[-1] == "background") is background
    assert files.background == BACKGROUND.get(name)


@pytest.fixture
def semantic(mini):
    """The training images 1, 2, 3 of a mini world, and label maps of 2, 3, 4."""
    for folder, suffix, stems in (("train", "jpg", "321"), ("stuffthingmaps/train", "png", "432")):
        (mini / folder).mkdir(parents=True, exist_ok=True)
        for stem in stems:
            (mini / folder / f"{stem}.{suffix}").touch()
    (mini / "train/.5.jpg").touch()  # hidden, as what an interrupted preparation leaves
    return mini


def test_images_and_label_maps_are_paired_by_name_and_the_rest_is_counted(semantic, caplog):
    records = sem_seg_records("mini_train_sem_seg")
    assert [record["image_id"] for record in records] == ["2", "3"]
    assert records[0]["file_name"] == str(semantic / "train/2.jpg")
    assert records[0]["sem_seg_file_name"] == str(semantic / "stuffthingmaps/train/2.png")
    assert "1 images have no label map and 1 label maps no image; 2 pairs" in caplog.text
    assert DatasetCatalog.get("mini_train_sem_seg") == records
    for path in (semantic / "stuffthingmaps/train").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no \\*.jpg of .*train has .*tools/mini.py world"):
        sem_seg_records("mini_train_sem_seg")


def test_ones_own_semantic_set_works_under_its_name(semantic, catalogue):
    images, labels = semantic / "train", semantic / "stuffthingmaps/train"
    pairs = [{"file_name": f"{images}/{n}.jpg"} for n in "32"]
    for n, pair in zip("32", pairs):
        pair["sem_seg_file_name"] = f"{labels}/{n}.png"
        for path in pair.values():
            Path(path).touch()
    DatasetCatalog.register("my_scenes", lambda: pairs)
    metadata = MetadataCatalog.get("my_scenes")
    metadata.set(image_root=str(images), sem_seg_root=str(labels), ignore_label=7)
    with pytest.raises(InputError, match='"my_scenes" has no "vocabulary"'):
        find_dataset("my_scenes", SemSegSet)
    metadata.vocabulary = "voc_20"
    files = find_dataset("my_scenes", SemSegSet)
    assert (files.path(files.images), files.path(files.annotations)) == (images, labels)
    assert (files.vocabulary, files.ignore_label, files.background) == ("voc_20", 7, None)
    assert [record["image_id"] for record in sem_seg_records("my_scenes")] == ["2", "3"]
    own = Vocabulary.of(["dog|puppy", "grass"])
    metadata.__dict__["vocabulary"] = own
    metadata.label_values = {20: 0, 30: 1}
    assert find_dataset("my_scenes", SemSegSet).vocabulary is own
    assert sem_seg_records("my_scenes")[0]["label_values"] == {20: 0, 30: 1}
    metadata.__dict__["sem_seg_root"] = "nowhere"
    with pytest.raises(InputError, match='"my_scenes": nowhere is missing; correct'):
        sem_seg_records("my_scenes")


@pytest.mark.parametrize(
    "name, classes, things", [(COCO, 133, 80), (ADE, 150, 100), (VISTAS, 65, 37), (BASE, 32, 24)]
)
def test_metadata_has_all_classes_and_the_things_among_them(name, classes, things):
    metadata, files = MetadataCatalog.get(name), find_dataset(name, PanopticSet)
    vocabulary = Vocabulary.load(files.vocabulary)
    thing_map = metadata.thing_dataset_id_to_contiguous_id
    all_map = metadata.stuff_dataset_id_to_contiguous_id
    assert metadata.stuff_classes == list(vocabulary.first_names) and len(vocabulary) == classes
    assert all_map == vocabulary.dataset_id_to_index
    assert len(metadata.thing_classes) == len(thing_map) == things
    for name_of_thing, (number, index) in zip(metadata.thing_classes, thing_map.items()):
        assert all_map[number] == index and vocabulary.first_names[index] == name_of_thing
        assert vocabulary.classes[index].isthing is True
    assert (metadata.ignore_label, metadata.label_divisor) == (255, 1000)
    assert metadata.evaluator_type == files.evaluator
    for key in ("image_root", "panoptic_root", "panoptic_json", "sem_seg_root", "json_file"):
        assert metadata.get(key)


@pytest.mark.parametrize(
    "name, sizes",
    [
        (COCO, (133, 254, 133, 80, 80)),
        (ADE, (150, 403, 64, 100, 44)),
        (CITYSCAPES, (19, 60, 17, 8, 7)),
        # The published list has 153 texts.
        (VISTAS, (65, 135, 26, 37, 13)),
    ],
)
def test_vocabularies_have_the_published_sizes_and_overlap_with_training(name, sizes):
    train = Vocabulary.load(find_dataset(COCO, PanopticSet).vocabulary)
    vocabulary = Vocabulary.load(find_dataset(name, PanopticSet).vocabulary)
    seen, things = vocabulary.seen_in(train, exact=True), vocabulary.thing
    texts = sum(len(entry.names) for entry in vocabulary.classes)
    assert sizes == (len(vocabulary), texts, seen.sum(), things.sum(), (seen & things).sum())


def test_regions_and_distillation_read_images_of_cityscapes_where_they_are(datasets_root):
    files, stem = DATASETS[CITYSCAPES], "frankfurt_000000_000294"
    segments = {"id": 9, "category_id": 7, "bbox": [0, 0, 9, 9]}
    entry = {"image_id": stem, "file_name": f"{stem}_gtFine_panoptic.png"}
    image = {
        "id": stem,
        "file_name": f"{stem}_gtFine_leftImg8bit.png",
    }  # as cityscapesscripts writes
    for need in files.needed():
        files.path(need.relative).parent.mkdir(parents=True, exist_ok=True)
    for folder in (files.images, files.panoptic_root):
        files.path(folder).mkdir(parents=True, exist_ok=True)
    content = {"images": [image], "annotations": [entry | {"segments_info": [segments]}]}
    files.path(files.annotations).write_text(json.dumps(content))
    wanted = str(files.path(files.images) / "frankfurt" / f"{stem}_leftImg8bit.png")
    for records in (region_records(CITYSCAPES)[1], distillation_records([CITYSCAPES], "grid")):
        assert [record["file_name"] for record in records] == [wanted]


def test_cityscapes_classes_are_detectron2s_in_number_order_and_kind():
    vocabulary = Vocabulary.load(find_dataset(CITYSCAPES, PanopticSet).vocabulary)
    metadata = MetadataCatalog.get(CITYSCAPES)
    things = metadata.thing_dataset_id_to_contiguous_id
    stuff = metadata.stuff_dataset_id_to_contiguous_id
    assert vocabulary.dataset_id_to_index == things | stuff
    assert set(things.values()) == set(np.flatnonzero(vocabulary.thing).tolist())
    assert vocabulary.first_names == tuple(metadata.stuff_classes)


def test_panoptic_records_keep_the_files_ids_and_those_of_the_catalogue_have_indices(mini):
    (record,) = panoptic_set_records(BASE)
    assert record == {
        "file_name": str(mini / "base/3.jpg"),
        "image_id": 3,
        "pan_seg_file_name": str(mini / "panoptic_base/3.png"),
        "panoptic_json": str(mini / "annotations/panoptic_base.json"),
        "sem_seg_file_name": str(mini / "stuffthingmaps/base/3.png"),
        "segments_info": [SEGMENT],
        "covered_stuff": False,
    }
    index = MetadataCatalog.get(BASE).stuff_dataset_id_to_contiguous_id[2]
    segments = [SEGMENT | {"category_id": index, "isthing": True}]
    assert DatasetCatalog.get(BASE) == [record | {"segments_info": segments}]


def test_ones_own_panoptic_set_works_under_its_name(mini, catalogue):
    json_file = str(mini / "annotations/panoptic_base.json")
    register_coco_panoptic(
        "my_scenes", {}, str(mini / "base"), str(mini / "panoptic_base"), json_file
    )
    with pytest.raises(InputError, match='"my_scenes" has segments, and boxes'):
        boxes("my_scenes")
    with pytest.raises(InputError, match='"my_scenes" has no "vocabulary" in its metadata: set Me'):
        find_dataset("my_scenes", PanopticSet)
    MetadataCatalog.get("my_scenes").vocabulary = "mini"
    files = find_dataset("my_scenes", PanopticSet)
    assert files.path(files.images) == mini / "base" and files.vocabulary == "mini"
    (record,) = panoptic_set_records("my_scenes")
    assert record["file_name"] == str(mini / "base/3.jpg")
    assert "sem_seg_file_name" not in record
    with pytest.raises(InputError, match='"my_scenes" has no "sem_seg_root" in its metadata'):
        panoptic_set_records("my_scenes", ["semantic"])
    (mini / "base").rmdir()
    with pytest.raises(InputError, match='"my_scenes": .*base is missing; correct its registr'):
        panoptic_set_records("my_scenes")


def annotation(image, category, **changes):
    return {
        **{"id": 1, "image_id": image, "category_id": category, "bbox": [1, 2, 30, 40], "area": 9},
        "segmentation": [[1, 2, 31, 2, 31, 42]],
        **changes,
    }


def write(root, file, images, annotations, categories):
    """A file of instances; categories are name by id."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [{"id": n, "width": 50, "height": 60, **image} for n, image in enumerate(images)]
    named = [{"id": number, "name": name} for number, name in categories.items()]
    path.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": named}))


def named(*names, **sizes):
    return [{"file_name": f"{name}.jpg", **sizes} for name in names]


def labels_of(records):
    return [[entry["label"] for entry in record["annotations"]] for record in records]


@pytest.fixture
def root(datasets_root):
    for folder in ("coco/train2017", "coco/val2017", "Objects365v1/val"):
        (datasets_root / folder).mkdir(parents=True)
    return datasets_root


OV_COCO = "coco/zero-shot/instances_train2017_seen_2_65_cat.json"
SOME = {1: "person", 17: "cat", 9: "boat"}
BOAT = Vocabulary.load("ov_coco_65").first_names.index("boat")
LVIS_URL = "http://images.cocodataset.org/{}2017/1.jpg"


@pytest.mark.parametrize(
    "name, classes, base",
    [("ov_coco_val", 65, 48), ("ov_lvis_val", 1203, 866), ("mini_val_boxes", 36, 24)],
)
def test_training_and_evaluation_share_the_classes_and_transfer_has_its_own(name, classes, base):
    vocabulary = Vocabulary.load(DATASETS[name].vocabulary)
    assert len(vocabulary) == classes
    assert base is None or vocabulary.seen.sum() == base


def test_training_leaves_small_images_and_those_without_annotation_out(root):
    images = named("a") + named("b", height=31) + named("c", "d")
    annotations = [annotation(0, 9), annotation(1, 1), annotation(2, 9, iscrowd=1)]
    write(root, OV_COCO, images, annotations, SOME)
    records = detection_records("ov_coco_train", training=True)
    # The first has a boat, the third a crowd alone; the second is small, the fourth has nothing.
    assert [r["image_id"] for r in records] == [0, 2] and labels_of(records) == [[BOAT], []]
    assert records[0]["file_name"] == str(root / "coco/train2017/a.jpg")
    assert "segmentation" not in records[0]["annotations"][0]
    assert len(detection_records("ov_coco_train")) == 4
    (entry,) = detection_records("ov_coco_train", masks=True)[0]["annotations"]
    assert entry["segmentation"] == annotation(0, 9)["segmentation"]
    # Those of the catalogue are Detectron2's.
    (entry,) = DatasetCatalog.get("ov_coco_train")[0]["annotations"]
    assert entry == {
        "bbox": [1, 2, 31, 42],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": BOAT,
        "segmentation": annotation(0, 9)["segmentation"],
        "iscrowd": 0,
    }


def test_novel_annotations_are_refused_in_training_with_the_command_that_mends_it(root):
    write(root, OV_COCO, named("a", "b"), [annotation(0, 9), annotation(1, 17)], SOME)
    for training in (True, False):
        with pytest.raises(InputError, match=r"cat \(1\); run `python tools/prepare.py ov_coco"):
            detection_records("ov_coco_train", training=training)
    file = "coco/zero-shot/instances_val2017_all_2.json"
    write(root, file, named("a"), [annotation(0, 17)], {17: "cat"})
    assert labels_of(detection_records("ov_coco_val")) == [[11]]
    with pytest.raises(InputError, match=r"cat \(1\)"):
        detection_records("ov_coco_val", training=True)
    rare = next(e for e in Vocabulary.load("lvis_v1_1203").classes if e.frequency == "r")
    file, number = "lvis/lvis_v1_train_seen_1203_cat.json", rare.dataset_id
    images = [{"coco_url": LVIS_URL.format("train")}]
    write(root, file, images, [annotation(0, number)], {number: rare.names[0]})
    with pytest.raises(InputError, match=rf"{rare.names[0]} \(1\); run `.*prepare.py ov_lvis"):
        detection_records("ov_lvis_train", training=True)


def test_images_of_lvis_lie_in_both_folders_of_coco(root):
    # Files of LVIS with names of images that others added, as GLIP's minival, do not name the folder.
    for added in ({}, {"file_name": "1.jpg"}):
        images = [{"coco_url": LVIS_URL.format(split)} | added for split in ("train", "val")]
        write(root, "lvis/lvis_v1_val.json", images, [annotation(0, 3)], {3: "airplane"})
        files = [record["file_name"] for record in detection_records("ov_lvis_val")]
        assert files == [str(root / f"coco/{split}2017/1.jpg") for split in ("train", "val")]


def test_classes_of_objects365_follow_from_the_order_of_its_ids(root):
    names = Vocabulary.load("objects365_v1").first_names
    categories = {2 * n + 5: f"{name} " for n, name in enumerate(names)}
    file = "Objects365v1/objects365_reorder_val.json"
    annotations = [annotation(0, 2 * 364 + 5)]
    write(root, file, named("a"), annotations, dict(reversed(categories.items())))
    assert labels_of(detection_records("transfer_objects365_val")) == [[364]]
    write(root, file, named("a"), annotations, categories | {11: "Lamp"})
    with pytest.raises(InputError, match='category 11 is "Lamp" where "objects365_v1" has "hat"'):
        detection_records("transfer_objects365_val")


def test_boxes_of_ones_own_need_a_vocabulary_of_the_same_classes(tmp_path, catalogue):
    categories = {1: "cat", 2: "dog", 3: "pony"}
    write(tmp_path, "boxes.json", named("a"), [annotation(0, 1)], categories)
    register_coco_instances("my_pets", {}, str(tmp_path / "boxes.json"), str(tmp_path))
    with pytest.raises(InputError, match='MetadataCatalog.get."my_pets"..vocabulary'):
        find_dataset("my_pets", DetectionSet)
    words = tmp_path / "words.json"
    MetadataCatalog.get("my_pets").vocabulary = str(words)

    words.write_text('["cat", "dog|puppy", "horse"]')  # a list counts from 0
    message = 'category 1 is "cat", but class 1 .* is "dog": give each class its "dataset_id"'
    with pytest.raises(InputError, match=message):
        detection_records("my_pets")

    # Other names for the file's own are fine.
    names = enumerate(("kitty", "dog", "x"), 1)
    classes = [{"dataset_id": number, "names": [name]} for number, name in names]
    words.write_text(json.dumps({"classes": classes}))
    assert labels_of(detection_records("my_pets", training=True)) == [[0]]
    (tmp_path / "boxes.json").unlink()
    with pytest.raises(InputError, match="boxes.json is missing; correct its registration"):
        detection_records("my_pets")
