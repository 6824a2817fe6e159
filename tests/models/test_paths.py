"""Names of models where Detectron2 takes a path."""

import os
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model as plain_model
from detectron2.utils.file_io import PathManager

from clipself_seg.choice import find_model
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models.build import build_model
from tests.tiny import noise

CPU = ["MODEL.DEVICE", "cpu", "DATASETS.TEST", "()"]


@pytest.fixture(autouse=True)
def weights(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "config, name", [("mini/semseg", "mini-cat-seg"), ("mini/panoptic", "mini-open-panoptic")]
)
def test_detectron2s_checkpointer_and_predictor_take_a_shipped_model_by_its_name(config, name):
    assert find_model(f"clipself://{name}") == find_model(name)
    ours = build_model(load_config(config, [*CPU, "MODEL.WEIGHTS", name])).state_dict()
    theirs = plain_model(load_config(config, CPU))
    DetectionCheckpointer(theirs).load(f"clipself://{name}")
    assert all(torch.equal(ours[key], value) for key, value in theirs.state_dict().items())
    predictor = DefaultPredictor(load_config(config, [*CPU, "MODEL.WEIGHTS", f"clipself://{name}"]))
    predictor.model.set_vocabulary("mini")
    assert predictor(noise(64, 96)).keys() >= {"sem_seg"}


def test_an_official_model_is_its_file_and_the_log_says_what_the_file_does_not_set(
    weights, caplog, stand_ins
):
    (weights / "model_base.pth").write_bytes(b"\x80")
    path = PathManager.get_local_path("clipself://catseg-base")
    assert path == str(weights / "model_base.pth")
    (line,) = (record.getMessage() for record in caplog.records)
    assert "POOLING_SIZES [1, 1], which a checkpoint does not set" in line
    assert (
        'load_config("semseg/catseg+openai_vitb16", ["MODEL.WEIGHTS", "clipself://catseg-b' in line
    )


def test_a_shipped_model_is_written_whole_once_and_anew_where_the_package_is_newer(weights):
    path = Path(PathManager.get_local_path("clipself://mini-cat-seg"))
    written = path.stat().st_mtime_ns
    assert PathManager.get_local_path("clipself://mini-cat-seg") == str(path)
    assert path.stat().st_mtime_ns == written
    os.utime(path, (0, 0))
    PathManager.get_local_path("clipself://mini-cat-seg")
    assert path.stat().st_mtime_ns >= written


def test_no_other_name_is_resolved():
    for name, says in [
        ("catseg-bse", 'did you mean "catseg-base"'),
        ("http://example.org/a.pth", 'no model "http://example.org/a.pth"'),
        ("../a.pth", "no model"),
        ("resnet101", "no model"),
        ("fvit-eva02-vitb16-lvis-patches", "load it by clipself_seg.load"),
    ]:
        with pytest.raises(InputError, match=says):
            PathManager.get_local_path(f"clipself://{name}")


def test_in_a_file_it_is_the_name_and_no_address(tmp_path):
    file = tmp_path / "a.yaml"
    for name, same in (("mini-cat-seg", True), ("http://example.org/a.pth", False)):
        file.write_text(f"_BASE_: mini/semseg.yaml\nMODEL:\n  WEIGHTS: clipself://{name}\n")
        if same:
            build_model(load_config(file, CPU))
        else:
            with pytest.raises(InputError, match="is the address http://example.org/a.pth"):
                load_config(file, CPU)
