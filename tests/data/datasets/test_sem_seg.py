"""Images and label maps of a name are paired, and what is missing is named with its command."""

from __future__ import annotations

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_seg.data.datasets.records import find_dataset, sem_seg_records, vocabulary_name
from clipself_seg.data.datasets.table import SemSegSet
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError

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
