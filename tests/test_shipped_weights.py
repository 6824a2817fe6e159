"""The paper's claim on the weights that come with the project, on scenes that nobody trained on."""

from __future__ import annotations

import json

import pytest

from clipself_seg.commands import train
from clipself_seg.mini.writer import WorldSize, make_worlds

TAGS = ("mini", "mini-clipself", "mini-clipself-proposals")
WAYS = ("boxes", "masks")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Folder of worlds of 60 scenes, which the environment names as long as the module runs."""
    root = tmp_path_factory.mktemp("shipped")
    make_worlds(root, WorldSize(train=1, val=60, base=1, seed=11), processes=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPSELF_SEG_MINI", str(root))
        yield root


def evaluated(config, output, *keys):
    """Results of an evaluation by data set."""
    words = ["--config-file", f"configs/mini/{config}.yaml", "--eval-only", *keys]
    assert train.main([*words, "OUTPUT_DIR", str(output)]) == 0
    return json.loads((output / "results.json").read_text())["results"]


@pytest.fixture(scope="module")
def top1(worlds):
    """Tag -> way and group -> top-1 mean class accuracy in percent."""
    found = {}
    for tag in TAGS:
        results = evaluated("regions", worlds / tag, "MODEL.CLIP.WEIGHTS", tag)
        (numbers,) = results["mini_val_panoptic"].values()
        found[tag] = {key: value for key, value in numbers.items() if key.endswith("top1")}
    return found


def test_the_teacher_knows_what_a_crop_shows(top1):
    assert top1["mini"]["crops.thing.top1"] >= 80


@pytest.mark.parametrize("way", WAYS)
def test_the_original_reads_its_own_dense_features_badly(top1, way):
    assert top1["mini"][f"{way}.thing.top1"] <= top1["mini"]["crops.thing.top1"] / 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tag", TAGS[1:])
def test_a_student_reads_them_nearly_as_well_as_the_teacher_reads_crops(top1, tag, way):
    assert top1[tag][f"{way}.thing.top1"] >= 2 / 3 * top1["mini"]["crops.thing.top1"]
    assert top1[tag]["masks.stuff.top1"] > top1["mini"]["masks.stuff.top1"] + 10


def test_the_detector_finds_things_that_its_training_never_named(worlds):
    keys = ("MODEL.WEIGHTS", "mini-fvit", "DATASETS.TEST", "('mini_val_boxes',)")
    numbers = evaluated("detection", worlds / "detection", *keys)["mini_val_boxes"]["bbox"]
    assert numbers["AP50-unseen"] >= 60 and numbers["AP50-seen"] >= 75
