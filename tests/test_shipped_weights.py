"""The weights that come with the project: they know their words, and the paper's claim holds on the shipped scenes of
the split val, that nobody trained on."""

import json

import pytest

from clipself_seg.commands import train
from clipself_seg.data.datasets.table import SHIPPED_WORLD

TAGS = ("mini", "mini-clipself", "mini-clipself-proposals")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Folder of the evaluations, of the shipped scenes whatever was drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPSELF_SEG_MINI", str(SHIPPED_WORLD))
        yield tmp_path_factory.mktemp("shipped")


def evaluated(config, output, *keys):
    """Results of an evaluation by data set."""
    words = ["--config-file", f"configs/mini/{config}.yaml", "--eval-only", *keys]
    assert train.main([*words, "OUTPUT_DIR", str(output)]) == 0
    return json.loads((output / "results.json").read_text())["results"]


@pytest.fixture(scope="module")
def top1(outputs):
    """Tag -> readout and group -> top-1 mean class accuracy in percent."""
    numbers = {}
    for tag in TAGS:
        results = evaluated("regions", outputs / tag, "MODEL.CLIP.WEIGHTS", tag)
        (of_set,) = results["mini_val_panoptic"].values()
        numbers[tag] = {key: value for key, value in of_set.items() if key.endswith("top1")}
    return numbers


def test_students_read_dense_features_nearly_as_well_as_the_teacher_reads_crops(top1):
    original, crops = top1["mini"], top1["mini"]["crops.thing.top1"]
    assert crops >= 80
    for readout in ("boxes", "masks"):
        assert original[f"{readout}.thing.top1"] <= crops / 3
        for tag in TAGS[1:]:
            assert top1[tag][f"{readout}.thing.top1"] >= 2 / 3 * crops, (tag, readout)
    for tag in TAGS[1:]:
        assert top1[tag]["masks.stuff.top1"] > original["masks.stuff.top1"] + 10, tag


def test_the_detector_finds_things_that_its_training_never_named(outputs):
    keys = ("MODEL.WEIGHTS", "mini-fvit", "DATASETS.TEST", "('mini_val_boxes',)")
    numbers = evaluated("detection", outputs / "detection", *keys)["mini_val_boxes"]["bbox"]
    assert numbers["AP50-unseen"] >= 60 and numbers["AP50-seen"] >= 75
