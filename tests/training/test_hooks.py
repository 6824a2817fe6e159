"""Hooks of Detectron2 in the training loop: what they see, exact resume, and pictures of predictions."""

import json

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase, hooks
from detectron2.utils.events import JSONWriter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipself_seg import imports, training
from clipself_seg.commands import train
from clipself_seg.errors import InputError
from tests.conftest import ROOT
from tests.tiny import small_worlds
from tests.training import test_trainer
from tests.training.test_trainer import ITERATIONS, assert_same, trainer, weights
from tests.two_processes import in_two_processes

uninterrupted = test_trainer.uninterrupted


class Means(HookBase):
    """Keeps a state, takes random numbers, and logs; may end the run after so many steps."""

    def __init__(self, end_after=None, end=None):
        self.calls, self.norms = [], []
        self.end_after, self.end = end_after, end

    def before_train(self):
        self.calls.append(("train", self.trainer.iter, self.trainer.max_iter))

    def before_step(self):
        self.calls.append(("before", self.trainer.iter))

    def after_step(self):
        torch.rand(3)
        first = next(p for p in self.trainer.model.parameters() if p.requires_grad)
        self.norms.append(float(first.detach().norm()))
        self.trainer.storage.put_scalar("norm", self.norms[-1], smoothing_hint=False)
        self.calls.append(("after", self.trainer.iter, self.trainer.storage.latest()["lr"][1]))
        if self.trainer.iter + 1 == self.end_after:
            self.end()

    def after_train(self):
        self.calls.append(("trained", self.trainer.iter))

    def state_dict(self):
        return {"norms": self.norms}

    def load_state_dict(self, state):
        self.norms = state["norms"]


class Named(HookBase):
    """Has a state that it was made with."""

    def __init__(self, name):
        self.name = name

    def state_dict(self):
        return {"name": self.name}


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize("evaluation", [0, 2])
def test_a_resumed_run_has_the_weights_and_the_states_of_hooks_of_one_without_a_break(
    tmp_path, uninterrupted, evaluation
):
    how = {"evaluation_period": evaluation, "evaluate": lambda model: {}}
    whole = Means()
    trainer(tmp_path / "whole", hooks=[whole], **how).train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "broken", hooks=[Means(5, interrupted)], **how).train()
    resumed = Means()
    run = trainer(tmp_path / "broken", hooks=[resumed], **how)
    run.train(resume=True)
    assert_same(weights(run), uninterrupted)
    assert resumed.norms == whole.norms and len(whole.norms) == ITERATIONS
    logged = lines(tmp_path / "broken/metrics.json")
    assert [line["norm"] for line in logged] == whole.norms
    assert resumed.calls[0] == ("train", 4, ITERATIONS)
    assert resumed.calls[-1] == ("trained", ITERATIONS)
    # Every step is logged here, so its numbers are in the storage.
    assert whole.calls[1:3] == [("before", 0), ("after", 0, 0)]


def test_two_hooks_of_one_class_keep_a_state_each(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, hooks=[Means(), Named("b"), Means(5, interrupted)]).train()
    first, second = Means(), Means()
    second.norms = ["lost"]
    trainer(tmp_path, hooks=[first, second]).train(resume=True)
    assert first.norms == second.norms and len(first.norms) == ITERATIONS
    assert "no hook Named here" in caplog.text


def test_detectron2s_own_hooks_work(tmp_path, uninterrupted):
    seen = []
    run = trainer(tmp_path, log_period=3)
    saved = DetectionCheckpointer(run.model, str(tmp_path / "theirs"))
    (tmp_path / "theirs").mkdir()
    run.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.CallbackHook(after_step=lambda trainer: seen.append(trainer.iter)),
            hooks.EvalHook(3, lambda: {"mine": {"score": -float(run.iter)}}),
            hooks.BestCheckpointer(3, saved, "mine/score"),
            hooks.PeriodicCheckpointer(saved, 5),
            hooks.PeriodicWriter([JSONWriter(str(tmp_path / "theirs.json"))], period=2),
        ]
    )
    run.train()
    assert_same(weights(run), uninterrupted)
    assert seen == list(range(ITERATIONS))
    files = {path.name for path in (tmp_path / "theirs").glob("*.pth")}
    assert files == {"model_best.pth", "model_0000004.pth", "model_final.pth"}
    assert "loss_clipself" in lines(tmp_path / "theirs.json")[-2]
    assert lines(tmp_path / "metrics.json")[-1]["mine/score"] == -ITERATIONS


def test_a_scheduler_of_the_rate_is_refused(tmp_path):
    with pytest.raises(InputError, match="LRScheduler has no effect: SOLVER sets"):
        trainer(tmp_path, hooks=[hooks.LRScheduler()])


def test_an_error_of_a_hook_is_that_of_its_author(tmp_path):
    hook = Means(3, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, hooks=[hook]).train()
    assert hook.calls[-1] == ("trained", 2)


def test_hooks_run_in_both_of_two_processes(tmp_path):
    def work(rank, folder):
        hook = Means()
        run = trainer(folder / "run", hooks=[hook], checkpoint_period=ITERATIONS)
        run.train()
        return hook.norms

    first, second = in_two_processes(work, tmp_path)
    assert first == second and len(first) == ITERATIONS
    again = Means()
    trainer(tmp_path / "run", hooks=[again]).train(resume=True)
    assert again.norms == first


HOOK = """
from detectron2.engine import HookBase

from clipself_seg.training import register_hook


@register_hook
class Count(HookBase):
    def __init__(self, cfg):
        self.file = open(f"{cfg.OUTPUT_DIR}/count.txt", "w")

    def after_step(self):
        print(self.trainer.iter, len(self.trainer.vocabulary), file=self.file, flush=True)
"""


@pytest.fixture
def registered():
    """The registered hooks, none at first and afterwards."""
    yield training.HOOKS
    training.HOOKS.clear()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with small_worlds(tmp_path_factory.mktemp("world"), 2, 1, 2, seed=5):
        yield


@pytest.mark.usefixtures("registered", "world")
@pytest.mark.parametrize("config", ["semseg", "panoptic", "detection"])
def test_predictions_are_drawn_by_a_hook_and_change_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setenv(imports.VARIABLE, "")
    name = f"count_{config}"
    (tmp_path / f"{name}.py").write_text(HOOK)
    typed = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.WARMUP_ITERS", "0"]
    typed += ["DATALOADER.NUM_WORKERS", "0", "DATASETS.TEST", "()", "SOLVER.CHECKPOINT_PERIOD", "2"]
    command = ["--config-file", str(ROOT / f"configs/mini/{config}.yaml"), *typed]
    assert train.main([*command, "OUTPUT_DIR", str(tmp_path / "plain")]) == 0
    drawn = tmp_path / "drawn"
    mine = ["--import", str(tmp_path / f"{name}.py")]
    assert train.main([*mine, *command, "OUTPUT_DIR", str(drawn), "VIS_PERIOD", "1"]) == 0
    final = [path / "model_final.pth" for path in (tmp_path / "plain", drawn)]
    assert final[0].read_bytes() == final[1].read_bytes()
    events = EventAccumulator(str(drawn), {"images": 0}).Reload()
    (tag,) = events.Tags()["images"]
    pictures = events.Images(tag)
    assert tag.startswith("predictions/") and [picture.step for picture in pictures] == [0, 1]
    counted = [line.split() for line in (drawn / "count.txt").read_text().splitlines()]
    assert [line[0] for line in counted] == list("01") and int(counted[0][1]) > 5
