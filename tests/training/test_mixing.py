"""Mixtures of the weights before and after a training, and how a run evaluates and writes them."""

import json
import types
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models.build import build_model
from clipself_seg.training import final_evaluation, mixing, run
from clipself_seg.training.mixing import changed_tensors, fractions_of, mixed, start_of_run
from clipself_seg.training.tasks import TrainingData
from tests.conftest import ROOT
from tests.training.test_run import TwoSets
from tests.training.test_trainer_cat_seg import RECORDS, configuration, mapper

KEY = "SOLVER.MIX_WITH_START"


class Bend(TwoSets):
    """Trained classes gain with the weights what others lose, but at their middle; notes which weights it met."""

    def __init__(self, number=lambda model: 0.0):
        super().__init__(False)
        self.number = number
        self.met = []

    def check(self, model):
        pass

    def _passes(self, name, model):
        self.met.append((name, hash_tensors(model.state_dict()), self.output_dir))
        self.f = self.number(model)
        return iter(())

    def _numbers(self, name, outputs):
        others = 60 - 40 * self.f**4
        return {"mIoU": 50.0, "mIoU-seen": 20 + 40 * self.f, "mIoU-unseen": others}


class Toy(nn.Module):
    """A weight, and a batch norm that trains, with statistics and their counter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -0.0, 3.0]))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.norm = nn.BatchNorm2d(2)

    def weights_hash(self):
        return hash_tensors(self.state_dict())

    def export(self, path):
        Path(path).write_text(self.weights_hash())


def trained(model):
    """What the toy is after its training, in place."""
    with torch.no_grad():
        model.weight.copy_(torch.tensor([5.0, 4.0, -1.0]))
        model.norm.running_mean += 8
        model.norm.num_batches_tracked += 7
    return model


def start_of(model):
    """The tensors in which a toy differs from one that did not train."""
    with mock.patch.object(mixing, "build_model", lambda cfg: Toy()):
        return changed_tensors(configuration(), model, "start.pth")


def bits(model):
    return {name: t.clone().view(torch.uint8) for name, t in model.state_dict().items() if t.ndim}


def test_mixtures_are_linear_and_their_ends_exact_to_the_bit():
    model = Toy()
    before = bits(model)
    after, start = bits(trained(model)), start_of(model)
    assert {*start} == {"weight", "norm.running_mean", "norm.num_batches_tracked"}
    with mixed(model, start, 0.25):
        assert model.weight.tolist() == [2.0, 1.0, 2.0]
        assert model.norm.running_mean.tolist() == [2.0, 2.0]
        assert model.norm.num_batches_tracked == 7  # a whole number is not mixed
    with mixed(model, start, 0.0):
        assert model.norm.num_batches_tracked == 0
        assert all(torch.equal(before[name], same) for name, same in bits(model).items())
    assert all(torch.equal(after[name], same) for name, same in bits(model).items())


def evaluated(folder, evaluation, fractions=(1.0, 0.0, 0.5), **outputs):
    cfg = load_config(ROOT / "configs/mini/semseg.yaml", ["OUTPUT_DIR", str(folder)])
    model = Toy()
    start = start_of(trained(model)) if fractions else {}
    outputs = final_evaluation.RunOutputs(cfg, folder, 9, **outputs)
    final_evaluation.evaluate_run(evaluation, model, outputs, start, fractions)
    return json.loads((folder / "results.json").read_text())


def test_a_run_writes_its_own_numbers_the_mixtures_and_the_weights_of_the_knee(tmp_path):
    evaluation = Bend(lambda model: (model.weight[0].item() - 1) / 4)
    content = evaluated(tmp_path, evaluation)
    assert content["results"]["first"]["mIoU-seen"] == 60  # of the weights after the training
    assert content["mixing"]["knee"] == 0.5
    rows = {row["fraction"]: row for row in content["mixing"]["rows"]}
    assert [rows[f]["trained"] for f in (0, 0.5, 1)] == [20, 40, 60]
    assert [rows[f]["not trained"] for f in (0, 0.5, 1)] == [60, 57.5, 20]
    half = json.loads((tmp_path / "mixing/0.5/results.json").read_text())
    assert half["results"]["first"]["mIoU-seen"] == 40 and "mixing" not in half
    assert half["provenance"]["fraction of the trained weights"] == 0.5
    assert (tmp_path / "model_mixed.pth").read_text() == half["provenance"]["weights_hash"]
    assert evaluation.output_dir == Path()
    assert [folder.name for _, _, folder in evaluation.met[2:]] == ["0", "0", "0.5", "0.5"]


def test_without_other_classes_or_a_knee_inside_no_mixed_weights_are_written(tmp_path, caplog):
    caplog.set_level("INFO", "clipself_seg")
    content = evaluated(tmp_path, Bend(), fractions=(1.0, 0.0))
    assert content["mixing"]["knee"] == 0
    assert "Knee (*), the best harmonic mean: 0. No mixture is better than the start" in caplog.text
    own = Bend()
    own._numbers = lambda name, outputs: {"mIoU": 50.0, "mIoU-seen": 20.0}
    content = evaluated(tmp_path, own, fractions=(1.0, 0.0))
    assert content["mixing"]["knee"] is None and "under `others` of the data file" in caplog.text
    assert not (tmp_path / "model_mixed.pth").exists()
    own._numbers = lambda name, outputs: {"mIoU": 50.0}
    assert "mixing" not in evaluated(tmp_path, own, fractions=(1.0, 0.0))
    assert "No mixture of the weights before and after was evaluated" in caplog.text


def test_without_the_key_a_run_writes_what_it_did(tmp_path):
    evaluation = Bend()
    assert evaluated(tmp_path, evaluation, fractions=[]).keys() == {
        *("results", "provenance", "protocol")
    }
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert len(evaluation.met) == 2


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Function that trains a small CAT-Seg from start.pth with fractions 0, 0.5 and 1; what its evaluation met."""
    start = tmp_path / "start.pth"
    model = build_model(configuration())
    model.export(start)
    monkeypatch.setattr(run, "refuse_training", lambda attention: None)

    def work(folder, evaluates=False, **keys):
        evaluation = Bend()
        data = TrainingData(RECORDS, mapper, ["cat", "dog", "sky"])
        task = types.SimpleNamespace(
            result_file="model_final.pth",
            evaluation=lambda: evaluation,
            training_data=lambda model: data,
        )
        monkeypatch.setattr(run, "task_of", lambda cfg: task)
        options = {"MODEL.WEIGHTS": start, KEY: "(0.5,)", "OUTPUT_DIR": tmp_path / folder} | keys
        options |= {"SOLVER.MAX_ITER": 2, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.IMS_PER_BATCH": 2}
        cfg = configuration(*(word for pair in options.items() for word in pair))
        run.evaluate(cfg, resume=False) if evaluates else run.train(cfg, resume=True)
        return {
            folder.name or "1": weights
            for name, weights, folder in evaluation.met
            if name == "first"
        }

    work.start = start
    return work


def test_a_resumed_run_and_its_evaluation_have_the_start_of_the_first_one(runs, tmp_path):
    straight = runs("straight")
    assert straight["0"] == hash_tensors(start_model(runs.start).state_dict())
    assert len(set(straight.values())) == 3
    (tmp_path / "straight/checkpoints/iteration_0000002.safetensors").unlink()
    assert runs("straight") == straight
    # Beside the file the configuration of the training names the start.
    end = tmp_path / "straight/model_final.pth"
    again = runs("again", evaluates=True, **{"MODEL.WEIGHTS": end})
    assert again["1"] == straight["1"] and again["0"] == straight["0"]
    config = tmp_path / "straight/config.yaml"
    cfg = configuration("MODEL.WEIGHTS", end, KEY, "(0.5,)")
    assert start_of_run(cfg) == str(runs.start)
    with pytest.raises(InputError, match="model_final.pth has the same as those after it"):
        changed_tensors(cfg, build_model(cfg), str(end))
    config.write_text("VERSION: 2\n")
    with pytest.raises(InputError, match="nothing says what those of .*model_final.pth are"):
        start_of_run(cfg)
    config.unlink()
    with pytest.raises(InputError, match="keep the config.yaml of the training"):
        start_of_run(cfg)


def start_model(start):
    model = build_model(configuration())
    model.load_checkpoint(read_checkpoint(start).tensors, "start.pth")
    return model


def test_a_training_without_a_start_has_no_mixtures():
    assert fractions_of(configuration()) == []
    assert fractions_of(configuration("DATASETS.DATA", "own.yaml"), trains=True) == []
    data = configuration("DATASETS.DATA", "own.yaml", "MODEL.WEIGHTS", "start.pth")
    assert fractions_of(data) == [] and fractions_of(data, trains=True) == [1, 0]
    with pytest.raises(
        InputError, match=r"must be \(\) without a start to mix with, MODEL.WEIGHTS"
    ):
        configuration(KEY, "(0.5,)")
    given = configuration(KEY, "(0.5, 1, 0.25)", "MODEL.WEIGHTS", "start.pth")
    assert fractions_of(given) == [1, 0, 0.5, 0.25]


@pytest.mark.parametrize(
    "config, fractions, message",
    [
        ("mini/patches", "(0.5,)", "CLIPSelf does not read it"),
        ("mini/semseg", "(1.5,)", r"must be numbers, each in \[0, 1\]"),
    ],
)
def test_fractions_that_mean_nothing_are_refused(config, fractions, message):
    with pytest.raises(InputError, match=message):
        load_config(config, [KEY, fractions])
