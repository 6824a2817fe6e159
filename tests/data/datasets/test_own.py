"""Data of one's own: what a file says is registered, and what is missing or wrong is named."""

import json
import re
import time

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from clipself_seg.data.datasets import own_file
from clipself_seg.data.datasets.own import check_data, register_data
from clipself_seg.data.datasets.records import (
    detection_records,
    distillation_records,
    find_dataset,
    panoptic_set_records,
    sem_seg_records,
)
from clipself_seg.data.datasets.table import DetectionSet, PanopticSet, SemSegSet
from clipself_seg.data.masks import read_labels_of, read_panoptic_ids, read_segments
from clipself_seg.errors import InputError

YAML = """
train: images/train
val: images/val
names: {3: "dog|puppy", 7: grass, 9: sky}
"""
pytestmark = pytest.mark.usefixtures("catalogue")


@pytest.fixture
def folder(tmp_path):
    """Images of two splits with label maps of the values 3, 7 and 200, and data.yaml."""
    for split, count in (("train", 11), ("val", 2)):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((4, 6), (3, 7, 200)[number % 3], np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"masks/{split}/{number}.png")
            Image.fromarray(pixels).convert("RGB").save(tmp_path / f"images/{split}/{number}.jpg")
    (tmp_path / "screws.yaml").write_text(YAML)
    return tmp_path


def refused(folder, text, task="semantic"):
    (folder / "screws.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        data = register_data(folder / "screws.yaml", task)
        sem_seg_records(data.train)
    return str(caught.value)


def test_images_with_label_maps_are_registered_for_training_and_evaluation(folder):
    data = register_data(folder / "screws.yaml", "semantic")
    assert data == ("own_screws_train_sem_seg", ("own_screws_val_sem_seg",))
    files = find_dataset(data.train, SemSegSet)
    assert files.vocabulary.first_names == ("dog", "grass", "sky")
    records = sem_seg_records(data.train)
    assert len(records) == 11 and len(sem_seg_records(data.test[0])) == 2
    labels = [read_labels_of(r, num_classes=3, ignore_label=255, size=(6, 4)) for r in records]
    assert [labels[n][0, 0] for n in (0, 1)] == [0, 1] and {x[0, 0] for x in labels} == {0, 1, 255}
    assert MetadataCatalog.get(data.train).stuff_classes == ["dog", "grass", "sky"]


def test_without_val_every_tenth_image_of_train_is_evaluated(folder):
    (folder / "screws.yaml").write_text(YAML.replace("val: images/val", ""))
    data = register_data(folder / "screws.yaml", "semantic")
    trained, evaluated = (
        {r["file_name"] for r in sem_seg_records(n)} for n in (data.train, data.test[0])
    )
    assert (len(trained), len(evaluated)) == (9, 2) and not trained & evaluated


def test_held_out_classes_are_evaluated_and_not_shown(folder):
    (folder / "screws.yaml").write_text(YAML + "held_out: [grass]")
    data = register_data(folder / "screws.yaml", "semantic")
    train, val = (find_dataset(name, SemSegSet) for name in (data.train, data.test[0]))
    assert train.vocabulary.first_names == ("dog", "sky") and train.label_values == {3: 0, 9: 1}
    assert val.vocabulary.first_names == ("dog", "grass", "sky")


def test_others_are_evaluated_too_by_name_and_by_file(folder):
    (folder / "more.yaml").write_text(YAML)
    (folder / "screws.yaml").write_text(YAML + "others: [mini_val_sem_seg, more.yaml]")
    data = register_data(folder / "screws.yaml", "semantic")
    assert data.test[1:] == ("mini_val_sem_seg", "own_more_val_sem_seg")
    (folder / "more.yaml").write_text(YAML.replace("train: images/train", ""))
    assert register_data(folder / "screws.yaml", "semantic") == data
    assert register_data(folder / "more.yaml", "semantic") == ("", data.test[2:])


def test_the_same_path_is_read_again_and_another_of_its_name_is_refused(folder):
    data = register_data(folder / "screws.yaml", "semantic")
    (folder / "screws.yaml").write_text(YAML.replace("sky", "sea"))
    assert register_data(folder / "screws.yaml", "semantic") == data
    assert find_dataset(data.train, SemSegSet).vocabulary.first_names[-1] == "sea"
    (folder / "other").mkdir()
    (folder / "other/screws.yaml").write_text(YAML.replace("train:", "path: ..\ntrain:"))
    with pytest.raises(InputError, match='registered as "own_screws_train_sem_seg", which'):
        register_data(folder / "other/screws.yaml", "semantic")


@pytest.mark.parametrize(
    "text, message",
    [
        (YAML + "download: https://x.org/a.zip", "download is .*nothing in a file is fetched"),
        (YAML + "nmaes: [a]", 'unknown key "nmaes": did you mean "names"?'),
        (YAML.replace("images/val", "images/vla"), "images/vla is missing"),
        (YAML.replace("grass", "no"), "names.7 is False, and has to be text: .* in quotation"),
        (YAML.replace("sky", "dog"), "the first name 'dog' is there twice: leave one"),
        (YAML + "ignore: 7", '"ignore" is 7, and "names" names it'),
        (YAML + "held_out: [gras]", '"held_out": unknown class "gras": did you mean "grass"?'),
        (YAML + "path: nowhere", '"train" .*nowhere/images/train is missing: correct it'),
        ("train: images/train", 'has no "names"'),
        (YAML.replace("images/train", "{image: images}"), '"train": unknown key "image": did'),
    ],
)
def test_what_is_wrong_in_a_file_is_named(folder, text, message):
    said = refused(folder, text)
    assert re.search(message, said) and "screws.yaml" in said


def test_pairs_are_by_name_and_what_lacks_the_other_is_counted(folder, caplog):
    (folder / "masks/train/0.png").unlink()
    (folder / "masks/train/x.png").write_bytes(b"")
    data = register_data(folder / "screws.yaml", "semantic")
    assert len(sem_seg_records(data.train)) == 10
    said = "1 images of .*train have no labels, and 1 files of labels have no image"
    assert re.search(said, caplog.text)
    (folder / "images/train/1.png").write_bytes(b"")
    with pytest.raises(InputError, match="images/train: .* without its ending '1' is there twice"):
        DatasetCatalog.get(data.train)


CATEGORIES = [
    {"id": 0, "name": "all", "supercategory": "none"},
    {"id": 3, "name": "dog", "supercategory": "all", "isthing": 1},
    {"id": 7, "name": "grass", "supercategory": "all", "isthing": 0},
]
SQUARE = [[0, 0, 30, 0, 30, 20, 0, 20]]


def write_coco(path, images=12, **changes):
    """A COCO JSON of images 0.jpg ... of 60 x 40 pixels: a dog of 30 x 20 pixels and grass of the whole image each."""
    entries = [
        {"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 40} for n in range(1, images + 1)
    ]
    annotations = []
    for entry in entries:
        whole = [[0, 0, 60, 0, 60, 40, 0, 40]]
        for category, mask, box in ((3, SQUARE, [0, 0, 30, 20]), (7, whole, [0, 0, 60, 40])):
            one = {"image_id": entry["id"], "category_id": category, "bbox": box, "iscrowd": 0}
            annotations.append(one | {"segmentation": mask, "id": len(annotations) + 1})
    content = {"images": entries, "annotations": annotations, "categories": CATEGORIES} | changes
    path.write_text(json.dumps(content))
    return path


def draw_images(folder, count=12):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        Image.new("RGB", (60, 40)).save(folder / f"{number}.jpg")


def test_a_json_is_read_once_until_its_memory_is_freed(tmp_path, monkeypatch):
    draw_images(tmp_path / "images")
    reads, read = [], own_file.read_coco_json
    monkeypatch.setattr(own_file, "read_coco_json", lambda path: reads.append(path) or read(path))
    path = write_coco(tmp_path / "parts.json")
    for task in ("semantic", "detection"):
        data = register_data(path, task)
        check_data([data.train, *data.test])
    assert reads == [path]
    own_file.forget_files()
    assert len(DatasetCatalog.get(data.train)) == 10 and reads == [path, path]


def test_a_coco_json_alone_trains_boxes_and_painted_label_maps(tmp_path):
    draw_images(tmp_path / "images")
    path = write_coco(tmp_path / "parts.json")
    data = register_data(path, "detection")
    assert find_dataset(data.train, DetectionSet).vocabulary.first_names == ("dog", "grass")
    assert len(DatasetCatalog.get(data.train)) == 10 and len(detection_records(data.test[0])) == 2
    record = DatasetCatalog.get(data.train)[0]
    assert record["file_name"] == str(tmp_path / "images/2.jpg")
    assert [entry["category_id"] for entry in record["annotations"]] == [0, 1]
    record = sem_seg_records(register_data(path, "semantic").train)[0]
    labels = read_labels_of(record, num_classes=2, ignore_label=255, size=(60, 40))
    assert (labels[:20, :30] == 0).all() and (labels[20:] == 1).all()
    (tmp_path / "images/1.jpg").unlink()
    record = DatasetCatalog.get(register_data(path, "detection").train)[0]
    assert record["file_name"] == str(tmp_path / "images/2.jpg")  # the first image is missing


def test_named_categories_alone_are_kept_and_held_out_ones_evaluated_alone(tmp_path):
    draw_images(tmp_path / "images")
    write_coco(tmp_path / "a.json")
    text = (
        "train: {images: images, annotations: a.json}\nval: {images: images, annotations: a.json}\n"
    )
    (tmp_path / "parts.yaml").write_text(
        text + "names: {3: 'dog|puppy', 7: lawn}\nheld_out: [lawn]"
    )
    data = register_data(tmp_path / "parts.yaml", "detection")
    counts = [
        len(record["annotations"])
        for name in (data.train, data.test[0])
        for record in DatasetCatalog.get(name)[:1]
    ]
    assert counts == [1, 2]
    (tmp_path / "parts.yaml").write_text(text + "names: {4: dog}")
    data = register_data(tmp_path / "parts.yaml", "detection")
    with pytest.raises(
        InputError, match="no object in these 12 images is of a class of .*parts.yaml"
    ):
        DatasetCatalog.get(data.train)


def test_objects_and_label_maps_are_no_two_truths_of_a_semantic_training(tmp_path):
    draw_images(tmp_path / "images")
    write_coco(tmp_path / "a.json")
    parts = "{images: images, masks: images, annotations: a.json}"
    (tmp_path / "parts.yaml").write_text(f"train: {parts}\nval: {parts}\n")
    with pytest.raises(InputError, match="parts.yaml: give masks or annotations for semantic, not"):
        sem_seg_records(register_data(tmp_path / "parts.yaml", "semantic").train)


def test_images_without_an_object_are_left_out_of_painted_label_maps_and_counted(tmp_path, caplog):
    draw_images(tmp_path / "images")
    path = write_coco(tmp_path / "a.json")
    content = json.loads(path.read_text())
    kept = [one for one in content["annotations"] if one["image_id"] > 4]
    path.write_text(json.dumps(content | {"annotations": kept}))
    assert len(sem_seg_records(register_data(path, "semantic").train)) == 7
    assert re.search("a.json: 3 of 10 .*no object of a class", caplog.text)


def test_a_comma_in_the_name_of_a_category_separates_no_synonyms(tmp_path):
    draw_images(tmp_path / "images")
    names = ("traffic light, red", "traffic light, green")
    categories = [{"id": number, "name": name} for number, name in zip((3, 7), names)]
    data = register_data(write_coco(tmp_path / "a.json", categories=categories), "detection")
    assert find_dataset(data.train, DetectionSet).vocabulary.first_names == names


def test_a_panoptic_json_trains_segments_and_label_maps_and_unnamed_ones_are_void(tmp_path):
    draw_images(tmp_path / "images")
    (tmp_path / "panoptic").mkdir()
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 0] = 7
    pixels[:20, :30, 0] = 3
    annotations = []
    for number in range(1, 13):
        Image.fromarray(pixels).save(tmp_path / f"panoptic/{number}.png")
        infos = [{"id": n, "category_id": n, "bbox": [0, 0, 60, 40], "area": 6} for n in (3, 7)]
        entry = {"image_id": number, "file_name": f"{number}.png", "segments_info": infos}
        annotations.append(entry)
    path = write_coco(tmp_path / "panoptic.json", annotations=annotations)
    data = register_data(path, "panoptic")
    files = find_dataset(data.train, PanopticSet)
    assert files.vocabulary.thing.tolist() == [True, False]
    records = panoptic_set_records(data.train)
    assert len(records) == 10 and set(np.unique(read_panoptic_ids(records[0]))) == {3, 7}
    assert [s["isthing"] for s in DatasetCatalog.get(data.train)[0]["segments_info"]] == [
        True,
        False,
    ]
    record = sem_seg_records(register_data(path, "semantic").train)[0]
    labels = read_labels_of(record, num_classes=2, ignore_label=255, size=(60, 40))
    assert labels[0, 0] == 0 and labels[30, 50] == 1
    (tmp_path / "parts.yaml").write_text("train: panoptic.json\nnames: {7: grass}")
    record, *_ = panoptic_set_records(register_data(tmp_path / "parts.yaml", "panoptic").train)
    assert (
        set(np.unique(read_panoptic_ids(record))) == {0, 7} == set(np.unique(read_segments(record)))
    )


def test_what_a_json_has_beside_its_images_and_names_is_said(tmp_path):
    draw_images(tmp_path / "images")
    path = write_coco(tmp_path / "a.json")
    content = json.loads(path.read_text())
    content["annotations"][2]["bbox"] = [70, 0, 9, 9]
    path.write_text(json.dumps(content))
    (tmp_path / "parts.yaml").write_text("train: a.json\nval: a.json\nnames: {3: dog}")
    said = check_data([register_data(tmp_path / "parts.yaml", "detection").train])
    assert said[0] == "own_parts_train_boxes: 12 images, 1 classes"
    assert said[1].endswith("annotations of classes without a name, which are ignored: grass (12)")
    assert said[2].startswith("own_parts_train_boxes: 1 annotations are left out: crowds, or boxes")
    (tmp_path / "images/12.jpg").unlink()
    with pytest.raises(InputError, match="1 of 12 images are missing, such as .*images/12.jpg"):
        check_data(["own_parts_train_boxes"])


@pytest.mark.parametrize("long", ["x" * 5000, "a/" * 3000, "é" * 200])
@pytest.mark.parametrize("key", ["train", "path", "others"])
def test_a_path_that_is_too_long_is_refused_in_a_sentence(tmp_path, key, long):
    draw_images(tmp_path / "images")
    write_coco(tmp_path / "a.json")
    keys = {"train": "a.json", "val": "a.json", "names": list("abcd"), key: long}
    (tmp_path / "own.yaml").write_text(json.dumps(keys))
    with pytest.raises(InputError, match="is too long for a path: correct it") as refused:
        register_data(tmp_path / "own.yaml", "detection")
    assert len(str(refused.value)) < 350


@pytest.fixture
def yolo(tmp_path):
    """Images and YOLO's text files of two splits, and a file of names."""
    for split, count in (("train", 3), ("val", 1)):
        draw_images(tmp_path / f"images/{split}", count)
        (tmp_path / f"labels/{split}").mkdir(parents=True)
        for number in range(1, count + 1):
            text = "1 0.5 0.5 0.5 0.5\n0 0 0 0.5 0 0.5 0.5 0 0.5\n" * (number < 3)
            (tmp_path / f"labels/{split}/{number}.txt").write_text(text)
    (tmp_path / "classes.txt").write_text("dog\ngrass\n")
    return tmp_path


def test_a_folder_of_yolos_boxes_and_polygons_needs_no_yaml(yolo):
    (yolo / "labels/train/3.txt").unlink()
    data = register_data(yolo, "detection")
    assert find_dataset(data.train, DetectionSet).vocabulary.first_names == ("dog", "grass")
    first, second, empty = DatasetCatalog.get(data.train)
    box, polygon = first["annotations"]
    assert (box["category_id"], box["bbox"]) == (1, [15.0, 10.0, 45.0, 30.0])
    assert (polygon["category_id"], polygon["bbox"]) == (0, [0.0, 0.0, 30.0, 20.0])
    assert polygon["segmentation"] == [[0.0, 0.0, 30.0, 0.0, 30.0, 20.0, 0.0, 20.0]]
    assert not empty["annotations"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("2 0.5 0.5 0.5 0.5", '1.txt, line 1: .* is of class 2, and "names" has 0 to 1'),
        ("0 0.5 0.5 1.5 0.5", "1.txt, line 1: .* reaches beyond the image"),
        ("0 0.5 0.5 0.5 0.5 0.9", "1.txt, line 1: '0 0.5 .* is no box"),
        ("-1 0.5 0.5 0.5 0.5", "whose class is a whole number from 0 on"),
    ],
)
def test_a_line_of_yolos_that_cannot_be_is_named(yolo, line, message):
    (yolo / "labels/train/1.txt").write_text(line)
    with pytest.raises(InputError, match=message):
        DatasetCatalog.get(register_data(yolo, "detection").train)


def test_images_alone_are_distilled_all_of_them_and_others_are_not_evaluated(tmp_path, caplog):
    draw_images(tmp_path / "train2017", 3)
    data = register_data(tmp_path / "train2017", "distillation")
    assert data.test == () and len(distillation_records([data.train], "grid")) == 3
    assert check_data([data.train]) == [f"{data.train}: 3 images"]  # no advice about labels
    assert not caplog.text
    (tmp_path / "screws.yaml").write_text("train: train2017\nothers: [mini_val_sem_seg]")
    assert register_data(tmp_path / "screws.yaml", "distillation").test == ()
    assert 'screws.yaml: a distillation does not evaluate "others"' in caplog.text


@pytest.mark.parametrize("task", ["detection", "panoptic"])
def test_label_maps_alone_are_no_data_for_boxes_and_segments(folder, task):
    with pytest.raises(InputError, match="where are the labels"):
        register_data(folder / "screws.yaml", task)


def painted(name):
    """Label map (40, 60) of the first image of a set of 60 x 40 pixels."""
    files = find_dataset(name, SemSegSet)
    how = {"num_classes": len(files.vocabulary), "ignore_label": files.ignore_label}
    return read_labels_of(sem_seg_records(name)[0], size=(60, 40), **how)


@pytest.mark.parametrize("how", ["held out", "without a name", "crowd"])
def test_a_mask_that_is_not_trained_hides_the_larger_one_below_it(tmp_path, how):
    draw_images(tmp_path / "images")
    path = write_coco(tmp_path / "a.json")
    content = json.loads(path.read_text())
    for entry in content["annotations"][::2] if how == "crowd" else ():
        entry["iscrowd"] = 1
    path.write_text(json.dumps(content))
    names = "{7: grass}" if how == "without a name" else "{3: dog, 7: grass}"
    held_out = "held_out: [dog]" * (how == "held out")
    text = f"train: a.json\nval: a.json\nnames: {names}\n{held_out}"
    (tmp_path / "b.yaml").write_text(text)
    labels = painted(register_data(tmp_path / "b.yaml", "semantic").train)
    grass = 1 if how == "crowd" else 0
    assert (labels[:20, :30] == 255).all() and (labels[20:] == grass).all()


@pytest.mark.parametrize("task", ["detection", "semantic"])
def test_files_that_number_classes_otherwise_are_refused(tmp_path, task):
    draw_images(tmp_path / "images")
    write_coco(tmp_path / "a.json")
    other = [{"id": 3, "name": "grass"}, {"id": 7, "name": "dog"}]
    write_coco(tmp_path / "b.json", categories=other)
    (tmp_path / "parts.yaml").write_text("train: a.json\nval: b.json")
    data = register_data(tmp_path / "parts.yaml", task)
    with pytest.raises(InputError, match='b.json: category 3 is "grass", but class 3 .* is "dog"'):
        DatasetCatalog.get(data.test[0])


def test_annotations_of_images_that_are_not_listed_are_refused_without_val_too(tmp_path):
    draw_images(tmp_path / "images")
    path = write_coco(tmp_path / "a.json")
    path.write_text(path.read_text().replace('"image_id": 5', '"image_id": "5"'))
    with pytest.raises(InputError, match="an annotation of image '5', which is not in"):
        DatasetCatalog.get(register_data(path, "detection").train)


def test_roboflows_exports_are_read_as_they_are(tmp_path, yolo):
    (yolo / "data.yaml").write_text("train: ../images/train\nval: ../images/val\nnames: [a, b]")
    assert len(DatasetCatalog.get(register_data(yolo, "detection").train)) == 3
    draw_images(tmp_path / "export/train")
    group = {"id": 0, "name": "dog", "supercategory": "none"}
    one = {"id": 3, "name": "dog", "supercategory": "dog"}
    write_coco(tmp_path / "export/train/_annotations.coco.json", categories=[group, one])
    (tmp_path / "export/pets.yaml").write_text("train: train")
    for path in (tmp_path / "export", tmp_path / "export/pets.yaml"):
        data = register_data(path, "detection")
        assert find_dataset(data.train, DetectionSet).vocabulary.first_names == ("dog",)
        assert len(DatasetCatalog.get(data.train)[0]["annotations"]) == 1


def test_label_maps_of_a_format_that_loses_values_are_no_label_maps(folder):
    for path in (folder / "masks/train").iterdir():
        path.rename(path.with_suffix(".jpg"))
    text = YAML.replace("images/train", "{images: images/train, masks: masks/train}")
    assert "that ends in .png .tif" in refused(folder, text)


def test_images_that_are_trained_and_evaluated_and_maps_without_a_class_are_said(folder):
    (folder / "screws.yaml").write_text(YAML.replace("images/val", "images/train"))
    data = register_data(folder / "screws.yaml", "semantic")
    assert "own_screws_val_sem_seg: 11 of these images are trained on, too" in check_data(
        [data.train, *data.test]
    )
    (folder / "screws.yaml").write_text(YAML.replace("3:", "4:").replace("7:", "8:"))
    data = register_data(folder / "screws.yaml", "semantic")
    with pytest.raises(InputError, match="none of 11 label maps has a pixel of a class"):
        check_data([data.train])


def test_one_image_is_too_few_for_both_parts(tmp_path):
    draw_images(tmp_path / "images", 1)
    with pytest.raises(InputError, match="one image cannot be both trained and evaluated"):
        DatasetCatalog.get(register_data(write_coco(tmp_path / "a.json", 1), "detection").train)


def test_images_in_a_folder_called_as_their_json_are_found(tmp_path):
    draw_images(tmp_path / "train")
    path = write_coco(tmp_path / "instances_train.json")
    record, *_ = DatasetCatalog.get(register_data(path, "detection").train)
    assert record["file_name"] == str(tmp_path / "train/2.jpg")


def test_a_name_of_an_image_that_no_file_can_have_is_said_to_be_missing(tmp_path):
    images = [{"id": i, "file_name": str(i) * 5000, "height": 40, "width": 40} for i in range(2)]
    box = {"image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    content = {"images": images, "categories": [{"id": 1, "name": "dog"}], "annotations": [box]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    names = register_data(tmp_path / "a.json", "distillation").train
    with pytest.raises(InputError, match="2 of 2 images are missing, such as .*00") as caught:
        check_data([names])
    assert len(str(caught.value)) < 2000


def test_an_empty_line_among_the_names_moves_no_number(yolo):
    (yolo / "classes.txt").write_text("dog\n\ngrass\n")
    with pytest.raises(InputError, match="class 1 of .* is '', which has an empty name"):
        register_data(yolo, "detection")


@pytest.mark.parametrize("line", ["1 0.5 0.5 0.5 0.5\n", "1" + " 0.25 0.5 0.5 0.25" * 10 + "\n"])
def test_an_object_of_yolos_is_read_in_far_less_than_a_millisecond(yolo, line):
    (yolo / "labels/train/1.txt").write_text(line * 5000)
    name = register_data(yolo, "detection").train
    began = time.process_time()
    assert len(DatasetCatalog.get(name)[0]["annotations"]) == 5000
    assert time.process_time() - began < 1
