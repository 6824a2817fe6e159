"""The small worlds that come with the package: whole, as their manifests say, and read where none were drawn."""

import configparser
import json
import logging

import pytest
from detectron2.data import DatasetCatalog

from clipself_seg.checkpoints.zoo import IN_WHEEL, SHIPPED, SHIPPED_MODELS, SHIPPED_TAGS
from clipself_seg.data.datasets import records
from clipself_seg.data.datasets.own import read_files
from clipself_seg.data.datasets.records import panoptic_set_records, standard_records
from clipself_seg.data.datasets.table import DATASETS, MINI, SHIPPED_WORLD
from clipself_seg.data.masks import read_indices, read_panoptic_ids
from clipself_seg.data.vocabulary import Vocabulary
from tests.conftest import ROOT

SCENES = {"mini": {"train": 32, "val": 13, "base": 12}, "mini2": {"train": 0, "val": 13, "base": 0}}
PANOPTIC = {
    "mini_train_panoptic_with_sem_seg": 32,
    "mini_val_panoptic_with_sem_seg": 13,
    "mini_train_base_panoptic": 12,
    "mini2_val_panoptic_with_sem_seg": 13,
}


@pytest.fixture(autouse=True)
def nothing_drawn(tmp_path, monkeypatch):
    monkeypatch.delenv("CLIPSELF_SEG_MINI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_wheel_is_given_the_files_of_small_weights_and_of_the_worlds():
    cfg = configparser.ConfigParser()
    cfg.read(ROOT / "setup.cfg")
    patterns = cfg["options.package_data"]["clipself_seg"].replace(",", " ").split()
    package = ROOT / "clipself_seg"
    given = {path for pattern in patterns for path in package.glob(pattern) if path.is_file()}
    weights = {SHIPPED / f"{stem}.safetensors" for tag in IN_WHEEL for stem in SHIPPED_TAGS[tag]}
    weights |= {*SHIPPED_MODELS.values()}
    assert {path for path in given if path.suffix == ".safetensors"} == weights
    assert {path for path in SHIPPED_WORLD.rglob("*") if path.is_file()} <= given


def test_manifests_say_how_many_scenes_there_are():
    assert {path.name for path in SHIPPED_WORLD.iterdir()} == SCENES.keys()
    for world, counts in SCENES.items():
        manifest = json.loads((SHIPPED_WORLD / world / "manifest.json").read_text())
        assert {split: manifest[split] for split in counts} == counts and manifest["shipped"]
        images = {s: len([*(SHIPPED_WORLD / world / s).glob("*.jpg")]) for s in counts}
        assert images == counts


def test_every_data_set_of_what_is_there_has_its_records():
    here = [n for n, entry in DATASETS.items() if entry.root is MINI and not entry.missing()]
    assert len(here) == 26
    for name in here:
        read = standard_records if name in PANOPTIC else DatasetCatalog.get
        assert len(read(name)) in (12, 13, 32), name


@pytest.mark.parametrize("name", PANOPTIC)
def test_labels_agree_with_the_images_and_with_each_other(name):
    vocabulary = Vocabulary.load(DATASETS[name].vocabulary)
    records = panoptic_set_records(name, ("semantic", "instances"))
    assert len(records) == PANOPTIC[name]
    for record in records:
        assert not read_files(record, len(vocabulary), 255)
        ids, labels = read_panoptic_ids(record), read_indices(record["sem_seg_file_name"])
        for segment in record["segments_info"]:
            inside = ids == segment["id"]
            label = vocabulary.dataset_id_to_index[segment["category_id"]]
            assert inside.sum() == segment["area"] and (labels[inside] == label).all()


def test_one_line_of_the_log_says_that_they_are_read(caplog):
    records._log_once.cache_clear()
    with caplog.at_level(logging.INFO):
        standard_records("mini_val")
        standard_records("mini_train")
    (line,) = [text for text in caplog.messages if "come with the package" in text]
    assert "mini (32 train, 13 val, 12 base) and mini2 (0 train, 13 val, 0 base)" in line


def test_worlds_that_were_drawn_are_read_before_them(tmp_path, monkeypatch):
    assert MINI.path == SHIPPED_WORLD and MINI.shipped
    (tmp_path / "output/mini_world/mini").mkdir(parents=True)
    assert MINI.path == MINI.drawn and not MINI.shipped
    monkeypatch.setenv("CLIPSELF_SEG_MINI", "elsewhere")
    assert str(MINI.path) == "elsewhere"
