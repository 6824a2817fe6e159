"""The loop: exact resume after any death, refusals, and the stop at a number that is not finite."""

import dataclasses
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine.hooks import CallbackHook
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipself_seg.checkpoints import training_state as checkpoint
from clipself_seg.checkpoints.training_state import trained_parameters
from clipself_seg.config.declare import is_free
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.models.distillation import CONTEXTS, OBJECTIVES, Original, WeightedObjectives
from clipself_seg.models.optimizer_groups import matrices_and_vectors
from clipself_seg.training.metrics import HostCopy, drop_metrics_from
from clipself_seg.training.optimizer import learning_rate
from clipself_seg.training.settings import TrainingSettings
from clipself_seg.training.trainer import Trainer, TrainingStopped
from tests.tiny import tiny_clipself, tiny_mapper, tiny_record

ITERATIONS = 7
EVALUATED = {"set": {"top1": 50.0}}


def settings(folder: Path, **changes) -> TrainingSettings:
    return TrainingSettings(
        output_dir=folder,
        **{
            "seed": 3,
            "batch_size": 2,
            "iterations": ITERATIONS,
            "rate": partial(learning_rate, base=1e-2, warmup=2, total=ITERATIONS),
            "betas": (0.9, 0.98),
            "eps": 1e-6,
            "checkpoint_period": 2,
            "log_period": 1,
            "shared": {"SOLVER.BASE_LR": 1e-2},
        }
        | changes,
    )


def trainer(
    folder: Path,
    mapper=tiny_mapper,
    evaluate=None,
    records=None,
    target=None,
    hooks=(),
    vocabulary=None,
    **changes,
) -> Trainer:
    torch.set_num_threads(1)  # OpenMP does not survive the fork of `killed`
    model = tiny_clipself(trainable_blocks=2, target=target)
    run_settings = settings(folder, **changes)
    return Trainer(
        model=model,
        records=records or [tiny_record(index) for index in range(5)],
        mapper=mapper,
        settings=run_settings,
        evaluate=evaluate,
        groups=matrices_and_vectors(model.parameters(), 0.1),
        hooks=hooks,
        vocabulary=vocabulary,
    )


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained_parameters(run.model).items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = trainer(tmp_path_factory.mktemp("uninterrupted"))
    run.train()
    return weights(run)


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def kill_self(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_step(run: Trainer) -> None:
    """Die while the fourth batch is made."""
    run.mapper = lambda record, draw: kill_self() if draw == 7 else tiny_mapper(record, draw)


def before_any_checkpoint(run: Trainer) -> None:
    """Die in the first step."""
    run.model.after_optimizer_step = kill_self


def in_a_checkpoint(run: Trainer) -> None:
    """Die when the second checkpoint is written but has not got its name."""
    replace = os.replace
    os.replace = lambda a, b: kill_self() if "0004" in str(b) else replace(a, b)


def after_a_checkpoint(run: Trainer) -> None:
    """Die between a checkpoint and the removal of the oldest."""
    checkpoint.Path.unlink = kill_self


def in_the_last_step(run: Trainer) -> None:
    """Die when everything but the last checkpoint is done."""
    save = run._save
    run._save = lambda done: kill_self() if done == ITERATIONS else save(done)


def in_an_evaluation(run: Trainer) -> None:
    """Die in the evaluation after the fourth step, whose checkpoint is written."""
    run.evaluate = lambda model: run.iter == 3 and kill_self() or EVALUATED


def killed(folder: Path, death, **changes) -> None:
    """Run a trainer in a forked process that dies by SIGKILL."""
    child = os.fork()
    if child == 0:
        run = trainer(folder, **changes)
        death(run)
        with open(os.devnull, "w") as sys.stdout, open(os.devnull, "w") as sys.stderr:
            run.train()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize(
    "death",
    [before_any_checkpoint, in_a_step, in_a_checkpoint, after_a_checkpoint, in_the_last_step],
)
def test_a_killed_run_that_is_resumed_ends_bit_identical(tmp_path, uninterrupted, death):
    killed(tmp_path, death)
    resumed = trainer(tmp_path)
    resumed.train(resume=True)
    assert_same(weights(resumed), uninterrupted)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert len(resumed.checkpoints.paths()) == resumed.checkpoints.keep
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(ITERATIONS))


def test_a_run_that_is_killed_in_an_evaluation_begins_again_with_it(tmp_path, uninterrupted):
    changes = {"evaluate": lambda model: EVALUATED, "evaluation_period": 2}
    killed(tmp_path, in_an_evaluation, evaluation_period=2)
    trainer(whole := tmp_path / "whole", **changes).train()
    for again in (True, False):
        resumed = trainer(tmp_path, **changes)
        resumed.train(resume=True)
        assert_same(weights(resumed), uninterrupted)
        left, right = (numbers_of(folder) for folder in (tmp_path, whole))
        assert left == right and len(left) == ITERATIONS, again
        assert [line.get("set/top1") for line in left] == [50.0, 50.0, None, 50.0, None, 50.0, None]


def numbers_of(folder: Path) -> list[dict]:
    """The lines of a run's metrics without times."""
    lines = (folder / "metrics.json").read_text().splitlines()
    times = {"time", "data_time", "eta_seconds"}
    return [{k: v for k, v in json.loads(x).items() if k not in times} for x in lines]


def test_evaluation_in_between_changes_nothing(tmp_path, uninterrupted):
    seen = []

    def evaluate(model):
        model.eval()
        torch.rand(5)
        seen.append(model.training)
        model.train()
        return {"data": {64: {"boxes.thing.top1": 50.0}}}

    run = trainer(tmp_path, evaluate=evaluate, evaluation_period=3)
    run.train()
    assert_same(weights(run), uninterrupted)
    assert len(seen) == 3  # before the first step, after 3 and 6
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert sum("data/64/boxes.thing.top1" in line for line in lines) == 3


def first_numbers(folder: Path) -> tuple[list[dict], list[float]]:
    """The lines of metrics.json that have an evaluation, and what TensorBoard has of it."""
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload().Scalars("set/top1")
    lines = [line for line in numbers_of(folder) if "set/top1" in line]
    return lines, [event.value for event in events]


@pytest.mark.parametrize("evaluation, log", [(2, 5), (6, 5), (1, 5), (1, 1), (3, 1)])
def test_the_evaluation_before_training_is_written_once(tmp_path, evaluation, log):
    values = iter(range(9))
    changes = {"evaluation_period": evaluation, "log_period": log}
    trainer(tmp_path, evaluate=lambda model: {"set": {"top1": next(values)}}, **changes).train()
    lines, events = first_numbers(tmp_path)
    each = list(range(1 + (ITERATIONS - 1) // evaluation))
    assert [line["set/top1"] for line in lines] == each == events
    steps = [done - 1 for done in range(evaluation, ITERATIONS, evaluation)]
    assert [line["iteration"] for line in lines] == [0, *steps]
    losses = [line["iteration"] for line in numbers_of(tmp_path) if "loss_clipself" in line]
    assert losses == sorted({*range(log - 1, ITERATIONS, log), *steps, ITERATIONS - 1})


def test_a_run_that_dies_before_its_first_log_keeps_the_evaluation_before_training(tmp_path):
    def work(folder):
        return {"evaluate": lambda model: EVALUATED, "evaluation_period": 6, "log_period": 5}

    killed(tmp_path, in_a_step, **work(tmp_path))
    trainer(tmp_path, **work(tmp_path)).train(resume=True)
    trainer(whole := tmp_path / "whole", **work(whole)).train()
    assert numbers_of(tmp_path) == numbers_of(whole)
    assert [line["iteration"] for line in first_numbers(tmp_path)[0]] == [0, 5]


def test_a_number_of_the_first_step_alone_is_written_beside_the_evaluation_before_it(tmp_path):
    def once(run):
        if run.iter == 0:
            run.storage.put_scalar("mine", 3.0, smoothing_hint=False)

    changes = {"evaluate": lambda model: EVALUATED, "evaluation_period": 6, "log_period": 5}
    trainer(tmp_path, hooks=[CallbackHook(after_step=once)], **changes).train()
    assert [line["iteration"] for line in numbers_of(tmp_path) if "mine" in line] == [0]


def test_an_output_folder_with_checkpoints_needs_resume(tmp_path):
    trainer(tmp_path).train()
    with pytest.raises(InputError, match="iteration_0000007.*--resume.*OUTPUT_DIR"):
        trainer(tmp_path).train()


def test_resume_under_another_configuration_or_data_is_refused(tmp_path):
    trainer(tmp_path, vocabulary=Vocabulary.of(["dog|puppy", "sea"])).train()
    with pytest.raises(InputError, match="SOLVER.BASE_LR was 0.01, is 0.02"):
        trainer(tmp_path, shared={"SOLVER.BASE_LR": 2e-2}).train(resume=True)
    with pytest.raises(InputError, match=r"training classes was 'dog\|puppy, sea', is 'dog, sea'"):
        trainer(tmp_path, vocabulary=Vocabulary.of(["dog", "sea"])).train(resume=True)
    other = trainer(tmp_path)
    other._run["original weights"] = "another"
    with pytest.raises(InputError, match="original weights was '[0-9a-f]{12}', is 'another'"):
        other.train(resume=True)


def in_folder(folder: str, names) -> list[dict]:
    return [tiny_record(i) | {"file_name": f"{folder}/{name}.jpg"} for i, name in enumerate(names)]


def test_resume_with_other_images_of_the_same_number_is_refused_and_moved_ones_are_the_same(
    tmp_path, uninterrupted
):
    trainer(tmp_path, records=in_folder("/data/here", "abcde"), iterations=2).train()
    for names in ("abcdf", "bacde", ("a", "b", "c", "d/e", "e")):
        with pytest.raises(InputError, match="names of training images was '[0-9a-f]+', is '"):
            trainer(tmp_path, records=in_folder("/data/here", names)).train(resume=True)
    moved = trainer(tmp_path, records=in_folder("/there", "abcde"))
    moved.train(resume=True)
    assert_same(weights(moved), uninterrupted)


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(tmp_path):
    run = trainer(tmp_path)
    losses = run.model.losses
    run.model.losses = lambda samples: {
        name: value * (float("nan") if samples[0]["iteration"] == 5 else 1)
        for name, value in losses(samples).items()
    }
    with pytest.raises(TrainingStopped) as caught:
        run.train()
    message = str(caught.value)
    drawn = [f"{draw.image}.jpg" for draw in run.order.batch(5)]
    assert "loss_clipself is not finite at iteration 5" in message
    assert all(name in message for name in drawn) and len(message.splitlines()) <= 2
    assert "the state before it, but for" in message and "the states of hooks" in message
    # Keys that a resumed run may not change need a new folder.
    advice = message.split("start anew in another OUTPUT_DIR")[1]
    for key in ("SOLVER.BASE_LR", "SOLVER.AMP.DTYPE"):
        assert key in advice and not is_free(key)
    kept = [path.name for path in run.checkpoints.paths()]
    assert kept == ["iteration_0000004.safetensors", "iteration_0000005.safetensors"]
    good, _ = run.checkpoints.newest()
    for name, value in weights(run).items():
        assert torch.equal(value, good[f"model/{name}"]) and value.isfinite().all()


def test_a_step_that_is_known_late_to_be_bad_has_changed_nothing(tmp_path):
    good = trainer(tmp_path / "good", checkpoint_period=3, checkpoint_keep=9)
    good.train()
    run = trainer(tmp_path / "bad", checkpoint_period=100, log_period=100)
    losses, asked = run.model.losses, []

    def spoiled(samples):
        asked.append(samples[0]["iteration"])
        factor = float("nan") if asked[-1] == 3 else 1
        return {name: value * factor for name, value in losses(samples).items()}

    run.model.losses = spoiled
    with pytest.raises(TrainingStopped, match="not finite at iteration 3, images: .*jpg"):
        run.train()
    assert asked == [0, 1, 2, 3]
    name = "iteration_0000003.safetensors"
    files = [folder / "checkpoints" / name for folder in (tmp_path / "good", tmp_path / "bad")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_log_of_a_period_has_the_numbers_of_its_last_step(tmp_path):
    logs = []
    for folder, period in ((tmp_path / "each", 1), (tmp_path / "third", 3)):
        trainer(folder, log_period=period).train()
        lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
        logs.append({line["iteration"]: line for line in lines})
    each, third = logs
    assert sorted(third) == [2, 5, 6]
    for iteration, line in third.items():
        for key in ("loss_clipself", "gradient_norm", "lr"):
            assert line[key] == each[iteration][key]


def spoil_after(run: Trainer, steps: int) -> None:
    """One trained weight becomes NaN in the last of so many steps."""
    done = []

    def spoil() -> None:
        done.append(1)
        if len(done) == steps:
            next(iter(trained_parameters(run.model).values())).data.fill_(float("nan"))

    run.model.after_optimizer_step = spoil


@pytest.mark.parametrize(
    "steps, message",
    [
        (3, "loss_clipself is not finite at iteration 3, images: .* not finite after 3 steps"),
        (4, "^Trained weights or their moments are not finite after 4 steps"),
    ],
)
def test_weights_that_are_not_finite_push_no_good_checkpoint_out(tmp_path, steps, message):
    run = trainer(tmp_path, checkpoint_keep=1)
    spoil_after(run, steps)
    with pytest.raises(TrainingStopped, match=f"{message}.*is finite: .*_0000002") as caught:
        run.train()
    assert len(str(caught.value).splitlines()) <= 2
    assert [path.name for path in run.checkpoints.paths()] == ["iteration_0000002.safetensors"]


def test_a_rate_that_is_no_number_leaves_no_checkpoint(tmp_path):
    run = trainer(tmp_path, rate=lambda step: float("nan"))
    with pytest.raises(TrainingStopped, match="not finite.*is finite: there is none"):
        run.train()
    assert not run.checkpoints.paths()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "gradient_norm is not finite at iteration 0"),
        # Loss scaling skips such a step, and may have to skip a few.
        ({"loss_scaling": True, "iterations": 30}, "20 steps in a row, the last at iteration 19"),
    ],
)
def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path, settings, message):
    run = trainer(tmp_path, **settings)
    before = weights(run)
    trained = next(iter(trained_parameters(run.model).values()))
    trained.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingStopped, match=message):
        run.train()
    assert_same(weights(run), before)


def test_gradients_are_clipped_to_a_norm(tmp_path):
    run = trainer(tmp_path, clip_norm=1e-3, iterations=1)
    run.train()
    norm = sum(p.grad.square().sum() for p in trained_parameters(run.model).values()).sqrt()
    torch.testing.assert_close(norm, torch.tensor(1e-3), rtol=1e-2, atol=0)


def test_loss_scaling_survives_resume(tmp_path):
    whole = trainer(tmp_path / "a", loss_scaling=True)
    whole.train()
    part = trainer(tmp_path / "b", loss_scaling=True)
    part._after_step = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    part._save(0)
    with pytest.raises(KeyboardInterrupt):
        part.train(resume=True)
    resumed = trainer(tmp_path / "b", loss_scaling=True)
    resumed.train(resume=True)
    assert_same(weights(resumed), weights(whole))
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()


def every_objective() -> WeightedObjectives:
    return WeightedObjectives(dict.fromkeys(OBJECTIVES, 0.5), Original(), CONTEXTS["qk"])


def test_a_resumed_run_of_every_objective_writes_the_files_of_an_uninterrupted_one(tmp_path):
    trainer(tmp_path / "whole", target=every_objective()).train()
    part = trainer(tmp_path / "part", target=every_objective())
    part.mapper = lambda record, draw: [][0] if draw == 10 else tiny_mapper(record, draw)
    with pytest.raises(IndexError):
        part.train()
    trainer(tmp_path / "part", target=every_objective()).train(resume=True)
    states = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "checkpoints").iterdir()}
        for name in ("whole", "part")
    ]
    assert states[0] == states[1]
    logged = []
    for name in ("whole", "part"):
        lines = map(json.loads, (tmp_path / name / "metrics.json").read_text().splitlines())
        terms = [term.loss for term in OBJECTIVES.values()]
        kept = ("iteration", *terms, "gradient_norm", "lr")  # the others are times
        logged.append([{key: line[key] for key in kept} for line in lines])
    assert logged[0] == logged[1] and len(logged[0]) == ITERATIONS


def test_metrics_of_steps_that_are_taken_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.json"
    strange = '[1]\n{}\n{"iteration": "1"}\n' + "[" * 99_999 + "\n"
    path.write_text('{"iteration": 1}\n' + strange + '{"iteration": 2}\n{"iteration": 3}\n{"itera')
    drop_metrics_from(path, 3)
    assert path.read_text() == '{"iteration": 1}\n{"iteration": 2}\n'


def test_settings_cover_the_keys_that_decide_what_is_learnt():
    from clipself_seg.config import load_config

    shared = TrainingSettings.from_config(load_config(None)).shared
    assert {"SOLVER.BASE_LR", "INPUT.REGIONS.MAX_SPLIT", "MODEL.CLIP.NAME", "SEED"} <= set(shared)
    assert not {"OUTPUT_DIR", "MODEL.CLIP.WEIGHTS", "TEST.EVAL_PERIOD"} & set(shared)
    assert dataclasses.is_dataclass(TrainingSettings)


def test_numbers_wait_for_the_gpu_that_has_them(monkeypatch):
    """With MODEL.DEVICE cuda:1 another GPU is the current one, whose stream knows nothing of the copy."""
    second, waited = torch.device("cuda", 1), []

    def stream(device=None):
        event = SimpleNamespace(synchronize=lambda: waited.append(device))
        return SimpleNamespace(record_event=lambda: event)

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    copied = torch.tensor([2.0])
    values = SimpleNamespace(is_cuda=True, device=second, to=lambda *_, **__: copied)
    assert HostCopy(values).numbers() == [2.0] and waited == [second]
