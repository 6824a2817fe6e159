"""The work of a process: its folder, logs, results, and what is refused."""

import contextlib
import functools
import json
import logging
import types
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from clipself_seg.checkpoints.training_state import trained_tensors
from clipself_seg.checkpoints.zoo import Entry, zoo
from clipself_seg.config import load_config
from clipself_seg.data.datasets.table import DATASETS
from clipself_seg.errors import InputError
from clipself_seg.evaluation.evaluation_base import Evaluation, innermost
from clipself_seg.evaluation.measuring_protocol import MeasuringProtocol
from clipself_seg.evaluation.report import format_table
from clipself_seg.models.build import build_model
from clipself_seg.training import run
from clipself_seg.training.final_evaluation import RunOutputs
from clipself_seg.training.run import setup_logging
from clipself_seg.training.settings import TrainingSettings
from tests.conftest import ROOT


class TwoSets(Evaluation):
    """Measures the first data set and fails at the second, if it is told to."""

    def __init__(self, fails):
        super().__init__(("first", "second"), workers=0, output_dir=Path())
        self.fails = fails

    def _read(self, name):
        pass

    def _protocol(self, name, model):
        words = {"words": f"those of {name}", "synonyms": "all", "templates": "one"}
        return MeasuringProtocol(**words, background="none", windows="none", size="own", seen="all")

    def _passes(self, name, model):
        return iter(())

    def _numbers(self, name, outputs):
        if self.fails and name == "second":
            raise OSError("a disk died")
        return {"mIoU": {"first": 50.0, "second": 60.0}[name]}

    def tables(self, results):
        body = [[name, str(numbers["mIoU"])] for name, numbers in results.items()]
        return {"All of it": format_table(["data set", "mIoU"], body)}


def evaluated(cfg, model, fails, **options):
    evaluation = TwoSets(fails)
    outputs = RunOutputs(cfg, Path(cfg.OUTPUT_DIR), None, **options)
    return evaluation(model, functools.partial(outputs.write, evaluation, model))


def test_an_evaluation_on_fewer_data_sets_or_into_a_folder_leaves_the_first_as_it_was(tmp_path):
    evaluation = TwoSets(False)
    before = evaluation.datasets, evaluation.output_dir
    assert [*evaluation.changed(datasets=("second",))(torch.nn.Linear(1, 1))] == ["second"]
    assert evaluation.changed(output_dir=tmp_path).output_dir == tmp_path
    assert (evaluation.datasets, evaluation.output_dir) == before and not evaluation.protocols


@pytest.mark.parametrize(
    ("device", "gpus", "said"),
    [
        ("cpu", True, "MODEL.DEVICE cpu: several processes train on cuda here"),
        ("mps", False, "MODEL.DEVICE mps: several processes train on cpu"),
        ("cuda", True, ""),
        ("cpu", False, ""),
    ],
)
def test_several_processes_need_a_device_each(device, gpus, said, tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "get_local_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(run, "setup_logging", lambda *_: None)
    cfg = load_config("mini/semseg", ["OUTPUT_DIR", str(tmp_path)])
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    with pytest.raises(InputError, match=said) if said else contextlib.nullcontext():
        run.setup(cfg)


def test_freed_memory_is_kept_once_the_model_is_built(monkeypatch):
    done = []
    monkeypatch.setattr(run, "build_model", lambda cfg, trains: done.append("built"))
    monkeypatch.setattr(run, "keep_freed_memory", done.append)
    monkeypatch.setattr(run, "architecture", lambda cfg: types.SimpleNamespace(require_trained=id))
    monkeypatch.setattr(run, "task_of", lambda cfg: done.append("task"))
    with pytest.raises(AttributeError):  # of no evaluation
        run.evaluate(load_config("", ["MODEL.DEVICE", "cpu"]), resume=False)
    assert done == ["built", "cpu", "task"]


def test_results_name_the_device_that_computed(tmp_path, monkeypatch):
    model = types.SimpleNamespace(weights_hash=lambda: "")
    cfg = load_config("", ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", str)
    named = []
    for device in ("cpu", "cuda:1"):
        cfg = cfg.clone()
        cfg.merge_from_list(["MODEL.DEVICE", device])
        evaluated(cfg, model, fails=False)
        named.append(json.loads((tmp_path / "results.json").read_text())["provenance"]["device"])
    assert named[1] == "cuda:1" and "cuda" not in named[0]


def test_numbers_of_finished_data_sets_are_kept_when_a_later_one_fails(tmp_path):
    cfg = load_config(ROOT / "configs/mini/semseg.yaml", ["OUTPUT_DIR", str(tmp_path)])
    model = types.SimpleNamespace(weights_hash=lambda: "none")
    with pytest.raises(OSError, match="a disk died"):
        evaluated(cfg, model, fails=True)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["results"] == {"first": {"mIoU": 50.0}}
    assert written["provenance"]["not evaluated"] == ["second"]
    evaluated(cfg, model, fails=False)
    written = json.loads((tmp_path / "results.json").read_text())
    assert list(written["results"]) == ["first", "second"]
    assert "not evaluated" not in written["provenance"]


def test_published_numbers_stand_beside_those_of_the_evaluation(monkeypatch, caplog):
    numbers = {"first": {"mIoU": 51.5, "PQ": 3}, "second": {"box": {"AP": 4}}, "third": {"AP": 5}}
    said = {"published": "mIoU 51.5", "source": "their page", "numbers": numbers}
    monkeypatch.setitem(zoo(), "theirs", Entry(name="theirs", file="", **said))
    cfg = load_config("", ["MODEL.WEIGHTS", "theirs"])
    with caplog.at_level(logging.INFO):
        run._say_published(cfg, {"first": {"mIoU": 50.04}, "second": {"box": {"AP": 3.96}}})
        run._say_published(load_config("", ["MODEL.WEIGHTS", "mine.pth"]), {})
    assert caplog.messages == [
        "published of theirs: mIoU 51.5 (their page)",
        "first, mIoU: 50.0 here, 51.5 published",
        "second/box, AP: 4.0 here, 4 published",
    ]


def test_numbers_of_the_zoo_are_those_of_its_texts():
    entries = [entry for entry in zoo().values() if entry.numbers]
    assert len(entries) == 24
    for entry in entries:
        for place, numbers in innermost(entry.numbers):
            assert place.partition("/")[0] in DATASETS
            assert all(str(number) in entry.published for number in numbers.values())


def test_attention_without_training_is_not_trained_with(tmp_path):
    opts = ["MODEL.CLIP.ATTENTION", "naclip", "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(InputError, match="ATTENTION naclip is for eval.*leave it none to train"):
        run.train(load_config(ROOT / "configs/mini/patches.yaml", opts), resume=False)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_evaluated_with_the_dense_feature_that_it_was_trained_with(tmp_path):
    def configured(*opts):
        chosen = ["OUTPUT_DIR", str(tmp_path), "MODEL.CLIP.WEIGHTS", "", *map(str, opts)]
        return load_config(ROOT / "configs/mini/patches.yaml", chosen)

    two = ("MODEL.CLIP.DENSE", "multi_value", "MODEL.CLIP.DENSE_BLOCKS", 2)
    cfg = configured(*two)
    model = build_model(cfg)
    tensors = {f"model/{name}": p for name, p in trained_tensors(model).items()}
    shared = dict(TrainingSettings.from_config(cfg).shared)
    shared |= {"original weights": model.original_hash()}
    metadata = {"iteration": 5, "scaler": {}, "run": shared}
    path = run._checkpoints(cfg).save(5, tensors, metadata)
    assert run._load_trained(cfg, model) == 5
    build_model(configured(*two, "MODEL.WEIGHTS", path))
    other = configured(*two[:3], 3)
    said = "is for the dense feature multi_value of 2 blocks, .*DENSE is multi_value of 3"
    with pytest.raises(InputError, match=said):
        run._load_trained(other, model)
    with pytest.raises(InputError, match=said):
        build_model(configured(*two[:3], 3, "MODEL.WEIGHTS", path))
    with pytest.raises(InputError, match="is for the dense feature multi_value of 2 blocks"):
        build_model(configured("MODEL.WEIGHTS", path))
    override = ("MODEL.CLIP.DENSE_OVERRIDE", True)
    assert run._load_trained(configured(*two[:3], 3, *override), model) == 5


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_is_told_with_the_name_of_the_log(tmp_path, capsys, rank):
    path = tmp_path / ("log.rank1.txt" if rank else "log.txt")
    path.symlink_to("/dev/full")
    setup_logging(tmp_path, rank)
    with pytest.raises(OSError, match="No space left on device: .*log") as caught:
        logging.getLogger("clipself_seg").info("a line")
    assert caught.value.filename == str(path) and "Traceback" not in capsys.readouterr().err
