"""OpenPanoptic in the training loop: several processes, half precision, and resuming to the last bit."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.checkpoints.training_state import trained_parameters
from clipself_seg.config import load_config
from clipself_seg.training.settings import TrainingSettings
from clipself_seg.training.trainer import Trainer
from tests.models.panoptic.test_model import CONFIG, SMALL, model_of, sample, training_samples
from tests.training.test_trainer_data_parallel import gradients
from tests.two_processes import in_two_processes

RUN = ("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.IMS_PER_BATCH", "2")
RUN += ("SOLVER.WARMUP_ITERS", "1", "SOLVER.SCHEDULE", "steps", "SOLVER.STEPS", "(3,)")
RECORDS = [{"file_name": f"{index}.jpg", "image_id": index} for index in range(4)]


def mapper(record, draw):
    return training_samples(2)[(draw + record["image_id"]) % 2] | record


def train(folder, resume=False):
    cfg = load_config(CONFIG, [*SMALL, *RUN, "OUTPUT_DIR", str(folder)])
    model = model_of(*RUN).train()
    settings = TrainingSettings.from_config(cfg)
    groups = model.optimizer_groups(cfg.SOLVER)
    run = Trainer(model=model, records=RECORDS, mapper=mapper, settings=settings, groups=groups)
    run.train(resume)
    return {name: p.detach().clone() for name, p in trained_parameters(model).items()}


@pytest.mark.parametrize("variant", ["label", "caption"])
def test_two_processes_without_unused_parameters_share_their_gradients(tmp_path, variant):
    def work(rank, folder):
        model = model_of("MODEL.MASK_GENERATOR.VARIANT", variant).train()
        model.sync_gradients = True
        return gradients(model, training_samples(3)[rank : rank + 2])

    first, second = in_two_processes(work, tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(value.isfinite().all() for value in first.values())


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    straight = train(tmp_path / "straight")
    train(tmp_path / "broken")
    (tmp_path / "broken/checkpoints/iteration_0000004.safetensors").unlink()
    resumed = train(tmp_path / "broken", resume=True)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_half_precision_changes_the_losses_little():
    found = []
    for enabled in (False, True):
        opts = ("SOLVER.AMP.ENABLED", enabled, "SOLVER.AMP.DTYPE", "bfloat16")
        model = model_of(*opts).train()
        torch.manual_seed(0)
        losses = model(training_samples())
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in trained_parameters(model).values())
        found.append(torch.stack(list(losses.values())).detach())
    torch.testing.assert_close(*found, rtol=0.05, atol=0.05)
    assert not torch.equal(*found)


def test_evaluation_is_in_full_precision_unless_it_is_asked_for():
    half = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16")
    plain, same, other = (
        model_of(*opts)([sample()])[0]["sem_seg"]
        for opts in ((), half, (*half, "TEST.PANOPTIC.AMP", True))
    )
    assert torch.equal(plain, same) and not torch.equal(plain, other)
