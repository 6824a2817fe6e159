"""Data of one's own: what a file says is registered, and what is missing or wrong is named."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from clipself_seg.data.datasets.own import register_data
from clipself_seg.data.datasets.records import find_dataset, sem_seg_records
from clipself_seg.data.datasets.table import SemSegSet
from clipself_seg.data.masks import read_labels_of
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
    assert files.vocabulary.names == ("dog", "grass", "sky")
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
    assert train.vocabulary.names == ("dog", "sky") and train.label_values == {3: 0, 9: 1}
    assert val.vocabulary.names == ("dog", "grass", "sky")


def test_others_are_evaluated_too_by_name_and_by_file(folder):
    (folder / "more.yaml").write_text(YAML)
    (folder / "screws.yaml").write_text(YAML + "others: [mini_val_sem_seg, more.yaml]")
    data = register_data(folder / "screws.yaml", "semantic")
    assert data.test[1:] == ("mini_val_sem_seg", "own_more_val_sem_seg")


def test_the_same_path_is_read_again_and_another_of_its_name_is_refused(folder):
    data = register_data(folder / "screws.yaml", "semantic")
    (folder / "screws.yaml").write_text(YAML.replace("sky", "sea"))
    assert register_data(folder / "screws.yaml", "semantic") == data
    assert find_dataset(data.train, SemSegSet).vocabulary.names[-1] == "sea"
    (folder / "other").mkdir()
    (folder / "other/screws.yaml").write_text(YAML.replace("train:", "path: ..\ntrain:"))
    with pytest.raises(
        InputError, match='would be registered as "own_screws_train_sem_seg", which'
    ):
        register_data(folder / "other/screws.yaml", "semantic")


@pytest.mark.parametrize(
    "text, message",
    [
        (YAML + "download: https://x.org/a.zip", 'has "download", which is not followed'),
        (YAML + "nmaes: [a]", 'unknown key "nmaes": did you mean "names"?'),
        (YAML.replace("images/val", "images/vla"), "images/vla is missing"),
        (YAML.replace("images/val", "https://x.org"), "give a path on this machine"),
        (YAML.replace("3:", "a:"), "\"names\" has 'a' where a number stands"),
        (YAML.replace("grass", "no"), "the name of 7 is False, and no text: put it in quotation"),
        (YAML.replace("sky", "dog"), "first names used more than once: dog"),
        (YAML + "ignore: 7", '"ignore" is 7, and "names" names it'),
        (YAML + "held_out: [gras]", '"held_out" has \'gras\': did you mean "grass"?'),
        (YAML + "others: [mini_vla_sem_seg]", 'did you mean "mini_val_sem_seg"?'),
        (YAML + "path: nowhere", '"path" .*nowhere is no folder'),
        ("val: images/val", 'has no "train"'),
        ("train: images/train", 'has no "names"'),
        (YAML.replace("images/train", "{image: images}"), 'unknown key "image" in "train": did'),
        (YAML.replace("images/train", "masks/train"), "where are the label maps of .*masks/train"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(folder, text, message):
    import re

    said = refused(folder, text)
    assert re.search(message, said) and "screws.yaml" in said


def test_pairs_are_by_name_and_what_lacks_the_other_is_counted(folder, caplog):
    (folder / "masks/train/0.png").unlink()
    (folder / "masks/train/x.png").write_bytes(b"")
    data = register_data(folder / "screws.yaml", "semantic")
    assert len(sem_seg_records(data.train)) == 10
    assert "1 images have no label map and 1 label maps no image; 10 pairs remain" in caplog.text
    (folder / "images/train/1.png").write_bytes(b"")
    with pytest.raises(InputError, match="1.png and .*1.jpg|1.jpg and .*1.png have one name, 1"):
        DatasetCatalog.get(data.train)
