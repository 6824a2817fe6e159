"""Settings, AdamW, the learning rate of each step, and the metrics that a resumed run drops."""

import errno
import json
import math

import pytest
import torch
from detectron2.solver import build_lr_scheduler
from detectron2.utils import events
from detectron2.utils.events import EventStorage
from torch import nn

from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models.optimizer_groups import matrices_and_vectors
from clipself_seg.training import optimizer
from clipself_seg.training.metrics import metric_writers, write_all
from clipself_seg.training.optimizer import (
    build_adamw,
    learning_rate,
    leave_out_step,
    set_learning_rate,
    stepped_rate,
)
from clipself_seg.training.settings import TrainingSettings, check_same_run


def test_a_difference_as_long_as_a_page_is_one_sentence():
    with pytest.raises(InputError, match="cannot resume: a was 'xxx.*, is 1. Restore") as caught:
        check_same_run({"a": "x" * 5000}, {"a": 1})
    assert len(str(caught.value)) < 500


def test_warmup_is_linear_from_its_first_step():
    rates = [learning_rate(step, base=1.0, warmup=4, total=10) for step in range(4)]
    assert rates == [0.25, 0.5, 0.75, 1.0]


def test_cosine_starts_at_base_passes_half_of_it_and_ends_near_zero():
    rate = {s: learning_rate(s, base=2.0, warmup=10, total=110) for s in (10, 60, 109, 110)}
    assert rate[10] == 2.0 and rate[110] == pytest.approx(0)
    assert rate[60] == pytest.approx(1.0)
    assert rate[109] == pytest.approx(1 + math.cos(math.pi * 0.99))


@pytest.mark.parametrize("warmup, factor", [(0, 0.001), (20, 0.001), (20, 1.0)])
def test_the_cosine_of_detectron2_begins_with_the_warmup(warmup, factor):
    names = {"LR_SCHEDULER_NAME": "WarmupCosineLR", "WARMUP_ITERS": warmup, "MAX_ITER": 50}
    names |= {"WARMUP_FACTOR": factor, "BASE_LR": 2.0}
    opts = [word for key, value in names.items() for word in (f"SOLVER.{key}", str(value))]
    cfg = load_config(None, opts)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler, rates = build_lr_scheduler(cfg, optimizer), []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    settings = TrainingSettings.from_config(cfg)
    assert [settings.rate(step) for step in range(50)] == pytest.approx(rates)


def test_steps_warm_up_from_their_factor_and_drop_at_and_after_each_milestone():
    how = {"base": 2.0, "warmup": 4, "factor": 0.5, "drops": (6, 8), "gamma": 0.1}
    rates = [stepped_rate(step, **how) for step in range(10)]
    assert rates == pytest.approx([1, 1.25, 1.5, 1.75, 2, 2, 0.2, 0.2, 0.02, 0.02])
    assert stepped_rate(0, **{**how, "warmup": 0}) == 2.0


def test_a_run_whose_rate_falls_as_a_cosine_is_not_made_longer():
    def shared(*opts):
        metadata = TrainingSettings.from_config(load_config(None, opts)).shared
        return json.loads(json.dumps(metadata))

    short, longer = ("SOLVER.MAX_ITER", "2"), ("SOLVER.MAX_ITER", "4")
    with pytest.raises(InputError, match="SOLVER.MAX_ITER was 2, is 4 .*cosine"):
        check_same_run(shared(*short), shared(*longer))
    steps = ("SOLVER.SCHEDULE", "steps")
    check_same_run(shared(*short, *steps), shared(*longer, *steps))


def test_adamw_takes_the_step_of_its_formula():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(2.0)
    optimizer = build_adamw(
        matrices_and_vectors(model.parameters(), 0.5), betas=(0.9, 0.98), eps=1e-6
    )
    optimizer.param_groups[0]["lr"] = 0.1
    model.weight.grad = torch.full((1, 1), 3.0)
    optimizer.step()
    # Decoupled decay first; the first normalised moment is g / |g|.
    torch.testing.assert_close(
        model.weight.data, torch.tensor([[2.0 * (1 - 0.1 * 0.5) - 0.1 * 3 / (3 + 1e-6)]])
    )


def test_a_step_that_is_left_out_changes_neither_weights_nor_moments():
    def stepped(numbers):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        groups = matrices_and_vectors(layer.parameters(), 0.1)
        optimizer = build_adamw(groups, betas=(0.9, 0.98), eps=1e-6)
        set_learning_rate(optimizer, 0.1)
        for number in numbers:
            for parameter in layer.parameters():
                parameter.grad = torch.full_like(parameter, number)
            leave_out_step(optimizer, torch.tensor(float(not math.isfinite(number))))
            optimizer.step()
        states = [optimizer.state[parameter] for parameter in layer.parameters()]
        return [*layer.parameters(), *(value for state in states for value in state.values())]

    whole, spoiled = stepped([1.0, 2.0]), stepped([1.0, math.nan, 2.0, math.inf])
    assert len(whole) == 2 * (1 + 3)
    assert all(torch.equal(*pair) for pair in zip(whole, spoiled))


def test_an_optimiser_that_takes_a_step_that_it_is_told_to_leave_out_is_noticed(monkeypatch):
    asks, cpu = optimizer.may_skip.__wrapped__, torch.device("cpu")
    assert asks(cpu)
    monkeypatch.setattr(optimizer, "leave_out_step", lambda *_: None)
    assert not asks(cpu)


@pytest.mark.parametrize("writer", ["JSONWriter", "TensorboardXWriter"])
@pytest.mark.parametrize("when", ["write", "close"])
def test_a_full_disk_is_told_with_the_name_of_the_folder(tmp_path, monkeypatch, writer, when):
    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(getattr(events, writer), when, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        with EventStorage(0), metric_writers(tmp_path, 0, 9) as writers:
            write_all(writers, tmp_path)
    assert caught.value.filename == str(tmp_path)


@pytest.mark.parametrize("config", ["mini/semseg", "mini/panoptic", "mini/detection"])
def test_gradients_stay_unsynchronised_in_a_distillation_alone(config):
    opts = ["SOLVER.SYNC_GRADIENTS", "False"]
    with pytest.raises(InputError, match="does not read it, it is for CLIPSelf; leave it out"):
        load_config(config, opts)
    name = "distill/unsynchronised/coco_patches_eva02_vitb16"
    assert not TrainingSettings.from_config(load_config(name)).sync_gradients
