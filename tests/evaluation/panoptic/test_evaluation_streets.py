"""Cityscapes and Mapillary Vistas by their names in DATASETS.TEST: perfect outputs get 100 of every task."""

from __future__ import annotations

import json

import pytest

from clipself_seg.commands.train import main
from clipself_seg.config import load_config
from clipself_seg.data.prepare.cityscapes import prepare_cityscapes
from clipself_seg.data.prepare.common import Options
from clipself_seg.data.prepare.vistas import prepare_vistas
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError
from clipself_seg.models.build import build_model
from tests.conftest import ROOT
from tests.spoiled_panoptic import Spoiler, evaluation
from tests.street_worlds import CITY, write_city_image, write_vistas_image

TRAINED = ("TEST.TRAIN_VOCABULARY", "openseg_coco_panoptic_133")
CITYSCAPES, VISTAS = "cityscapes_fine_panoptic_val", "mapillary_vistas_panoptic_val"


@pytest.fixture
def streets(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for number, city in enumerate(("aachen", "bonn")):
        write_city_image(tmp_path, f"{city}_00000{number}_000019", values=CITY[:: 1 - 2 * number])
    write_vistas_image(tmp_path)
    return tmp_path


def evaluated(folder, model, name):
    options = ("DATASETS.TEST", (name,), "TEST.PANOPTIC.ROWS", ("generator", "fused"), *TRAINED)
    return evaluation(folder, *options)(model)[name]


@pytest.mark.parametrize(
    "name, prepare, split, images, classes, seen",
    [
        # Road and persons are seen; pole and rider are not; of cars there is but a crowd, which counts for nothing.
        (CITYSCAPES, prepare_cityscapes, "val", 2, 4, 2),
        (VISTAS, prepare_vistas, "validation", 1, 4, 4),
    ],
)
def test_the_truth_itself_is_100_in_pq_ap_and_miou(
    streets, name, prepare, split, images, classes, seen
):
    prepare(Options(streets), [split])
    truth = evaluated(streets, Spoiler(), name)["generator"]
    assert {truth[key] for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "mIoU")} == {100}
    assert truth["AP"] == pytest.approx(100) and truth["images"] == images
    assert (truth["classes"], truth["classes_seen"]) == (classes, seen)
    assert truth.get("Cityscapes-AP") == (pytest.approx(100) if name == CITYSCAPES else None)


def test_exponents_of_seen_and_unseen_classes_are_told_apart(streets):
    """The spoiler loses segments of seen and of unseen classes by alpha and beta."""
    prepare_cityscapes(Options(streets), ["val"])
    model = Spoiler()
    model.exponents = (0.0, 1.0)
    fused = evaluated(streets, model, CITYSCAPES)["fused"]
    assert (fused["PQ_seen"], fused["PQ_unseen"], fused["AP-unseen"]) == (100, 0, 0)


@pytest.mark.parametrize("name, command", [(CITYSCAPES, "cityscapes_pan"), (VISTAS, "mapillary_v")])
def test_an_archive_that_is_not_prepared_names_the_command(streets, name, command):
    with pytest.raises(InputError, match=f"run `clipself-seg data prepare {command}"):
        evaluation(streets, "DATASETS.TEST", (name,), *TRAINED).check(Spoiler())


def test_a_label_file_gives_the_classes_other_names_and_decides_which_are_seen(streets):
    prepare_cityscapes(Options(streets), ["val"])
    own = load_vocabulary("openseg_cityscapes_19")
    lines = [f"{index}:class {index}" for index in range(len(own))]
    lines[5] = "5:person,pole"
    path = streets / "words.txt"
    path.write_text("\n".join(lines))
    options = ("DATASETS.TEST", (CITYSCAPES,), "TEST.PANOPTIC.LABEL_FILES", (str(path),), *TRAINED)
    model = Spoiler()
    results = evaluation(streets, *options)(model)[CITYSCAPES]["generator"]
    assert model.asked[0][1][5:7] == ("person", "class 6")
    assert (results["PQ"], results["classes"], results["classes_seen"]) == (100, 4, 1)
    with pytest.raises(InputError, match="LABEL_FILES has 1 entries, DATASETS.TEST 2"):
        evaluation(streets, "TEST.PANOPTIC.LABEL_FILES", ("a.txt",))


SMALL = {
    "MODEL.CLIP.NAME": "ConvNeXt-Mini-32",
    "MODEL.CLIP.WEIGHTS": "",
    "MODEL.CLIP_BRANCH.TEMPLATES": "odise",
    "MODEL.MASK_GENERATOR.ENCODER_LAYERS": 1,
    "MODEL.MASK_GENERATOR.ENCODER_HIDDEN": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 8,
    "INPUT.MIN_SIZE_TEST": 32,
    "INPUT.MAX_SIZE_TEST": 96,
    "SEED": 3,
}


def test_fcclip_evaluates_both_through_train_net(streets, tmp_path):
    prepare_cityscapes(Options(streets), ["val"])
    prepare_vistas(Options(streets), ["validation"])
    words = [str(word) for pair in SMALL.items() for word in pair]
    words += ["OUTPUT_DIR", str(tmp_path / "run"), "DATALOADER.NUM_WORKERS", "0"]
    config = "configs/panoptic/fcclip_convnext_large_streets.yaml"
    cfg = load_config(ROOT / config, words)
    build_model(cfg).export(tmp_path / "random.pth")
    words += ["MODEL.WEIGHTS", str(tmp_path / "random.pth")]
    assert main(["--config-file", str(ROOT / config), "--eval-only", *words]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())["results"]
    assert list(results) == [CITYSCAPES, VISTAS]
    for name, images in ((CITYSCAPES, 2), (VISTAS, 1)):
        fused = results[name]["fused"]
        assert (fused["images"], fused["alpha"], fused["beta"]) == (images, 0.4, 0.8)
        assert ("Cityscapes-AP" in fused) == (name == CITYSCAPES)
        assert {"PQ", "PQ_th", "PQ_st", "AP", "mIoU", "PQ_seen"} <= fused.keys()
