"""An RPN is trained on base classes, its proposals are written, and CLIPSelf distils on them: commands alone."""

import json

import pytest

import lab.precompute.stock_rpn  # noqa: F401  (enters the model)
from clipself_seg.commands import train
from lab.mini.writer import WorldSize, make_worlds
from precompute import train_rpn
from tests.conftest import ROOT

STEPS = "SOLVER.MAX_ITER 1 SOLVER.IMS_PER_BATCH 1 DATASETS.TEST ()".split()
NARROW = {
    "detection_original": ["MODEL.FVIT.CHANNELS", "8", "INPUT.DETECTION.SIDE", "64"],
    # Detectron2 has no R-18 that is narrower.
    "rpn_r18": "MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.FPN.OUT_CHANNELS 8 "
    "MODEL.RESNETS.RES2_OUT_CHANNELS 16 INPUT.DETECTION.SIDE 64".split(),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_worlds(folder, WorldSize(train=2, val=1, base=2), processes=1)
    return folder


@pytest.fixture(autouse=True)
def no_other_world(world, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(world))


def run(config, output, folder, *words, opts=()):
    given = ["--config-file", str(ROOT / f"configs/mini/{config}.yaml"), "--output", str(output)]
    # What has taken one step is not sure of any box.
    given += ["--score", "0", "--per-image", "30", *words]
    return train_rpn([*given, *STEPS, *NARROW[config], "OUTPUT_DIR", str(folder), *opts])


@pytest.mark.parametrize("config", NARROW)
def test_an_rpn_is_trained_and_clipself_distils_on_its_proposals(world, tmp_path, capsys, config):
    output = world / "mini/annotations/rpn_proposals_train.json"
    assert run(config, output, tmp_path / "rpn", "--overwrite") == 0
    said = capsys.readouterr().out
    count = len(json.loads(output.read_text())["annotations"])
    assert f"{output}: {count} proposals of 2 images\n" in said and count > 2
    if config == "rpn_r18":  # the files are alike
        return
    words = ["--config-file", str(ROOT / "configs/mini/proposals.yaml"), *STEPS]
    words += ["DATASETS.TRAIN", "('mini_train_rpn_proposals',)"]
    assert train.main([*words, "OUTPUT_DIR", str(tmp_path / "clipself")]) == 0
    assert (tmp_path / "clipself/clip_final.safetensors").exists()


def test_what_would_stop_the_writing_stops_before_the_training(
    world, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train, "main", lambda words: pytest.fail("it trains"))
    output = tmp_path / "there.json"
    output.write_text("mine")
    assert run("rpn_r18", output, tmp_path / "rpn") == 2
    assert "is there already: give another --output, or --overwrite" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("rpn_r18", tmp_path / "new.json", tmp_path / "rpn") == 2
    assert "start train-rpn without torchrun" in capsys.readouterr().err


def test_a_training_that_fails_writes_no_proposals(tmp_path, capsys):
    wrong = ("SOLVER.ACCUMULATE", "2")
    assert run("rpn_r18", tmp_path / "new.json", tmp_path / "rpn", opts=wrong) == 2
    assert "SOLVER.ACCUMULATE must be 1" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()
