"""Two processes (gloo, CPU) against one: gradients, weights and evaluation."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from clipself_seg.checkpoints.training_state import trained_parameters
from clipself_seg.data.shards import ShardStream
from clipself_seg.errors import InputError
from clipself_seg.models.clipself import DistillationTraining
from clipself_seg.training.settings import TrainingSettings
from clipself_seg.training.trainer import Trainer
from tests.shards import samples, write_shard, write_shards
from tests.tiny import WORDS, tiny_clipself, tiny_mapper, tiny_region_sample, tiny_samples
from tests.training.test_trainer import trainer, weights
from tests.two_processes import in_two_processes

Tensors = dict[str, torch.Tensor]


def gradients(model, samples, earlier=()) -> Tensors:
    """Gradients of the trained parameters, through the wrapper if there are processes.

    The wrapper orders its buckets by a first pass over `earlier` samples, if there are some.
    """
    forward = model
    if dist.is_initialized():
        # A bucket a parameter, as if the model was large: the order of all sums over processes counts.
        forward = DistributedDataParallel(model, bucket_cap_mb=1e-6)
    for given in filter(None, (earlier, samples)):
        model.zero_grad()
        sum(forward(given).values()).backward()
    return {name: p.grad for name, p in trained_parameters(model).items()}


def train_model(model, cfg, records, mapper, resume=False):
    """Trains a model by a configuration."""
    how = {"settings": TrainingSettings.from_config(cfg), "mapper": mapper}
    groups = model.optimizer_groups(cfg.SOLVER)
    Trainer(model=model, records=records, groups=groups, **how).train(resume)


def worst(left: Tensors, right: Tensors) -> float:
    """Largest difference, relative to the largest entry of each tensor."""
    return max(float((left[k] - right[k]).abs().max() / right[k].abs().max()) for k in right)


# One image with four regions and three with one to three: the shares are as uneven as can be.
SAMPLES = [tiny_samples(4)[index] for index in (3, 2, 0, 1)]


@pytest.mark.parametrize("average", ["regions", "images"])
def test_gradients_are_equal_and_those_of_one_process_on_the_whole_batch(tmp_path, average):
    def work(rank: int, folder: Path) -> Tensors:
        return gradients(tiny_clipself(loss_average=average), SAMPLES[2 * rank : 2 * rank + 2])

    first, second = in_two_processes(work, tmp_path)
    whole = gradients(tiny_clipself(loss_average=average), SAMPLES)
    assert all(torch.equal(first[name], second[name]) for name in whole)
    assert worst(first, whole) < 1e-4


@pytest.mark.parametrize("norm_trains", [False, True])
def test_gradients_are_views_of_what_is_sent_and_buffers_are_sent_where_they_change(
    tmp_path, norm_trains
):
    def work(rank: int, folder: Path) -> Tensors:
        run = trainer(folder / "two")
        run.model.norm = torch.nn.BatchNorm2d(4).requires_grad_(norm_trains)
        forward = run._parallel()
        run.model.norm.running_mean.fill_(rank)
        losses = forward(tiny_samples(2))["loss_clipself"] + 0 * run.model.norm.weight.sum()
        (losses + 0 * run.model.norm.bias.sum()).backward()
        kept = [p.grad.untyped_storage().data_ptr() for p in trained_parameters(run.model).values()]
        return {"mean": run.model.norm.running_mean, "storages": torch.tensor(len(set(kept)))}

    first, second = in_two_processes(work, tmp_path)
    assert first["storages"] == second["storages"] == 1
    assert second["mean"][0] == (0 if norm_trains else 1)


def test_samples_stay_where_the_loader_put_them(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    run.device, given = torch.device("cuda", 1), {}
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        "clipself_seg.training.trainer.DistributedDataParallel",
        lambda module, **how: given.update(how) or module,
    )
    run._parallel()
    assert given and given.get("device_ids") is None  # with them it moves what it is given


def shard_mapper(record, draw):
    """A sample of noise that follows from the name of an image in a shard."""
    if record["image_id"] == "bad.jpg":
        raise InputError("bad.jpg cannot be read")
    number = int(record["image_id"].removesuffix(".jpg"))
    return tiny_mapper({"file_name": record["file_name"], "image_id": number}, draw)


def test_two_processes_on_shards_go_on_as_two_and_not_as_one(tmp_path):
    shards = write_shards(tmp_path, count=3)
    shards.append(write_shard(tmp_path / "bad.tar", [*samples(range(9, 12)), ("bad.jpg", b"")]))

    def run(folder: Path, **changes) -> Trainer:
        stream = ShardStream(shards, batch_size=2, seed=3)
        return trainer(folder, shard_mapper, records=stream, **changes)

    def work(rank: int, folder: Path) -> Tensors:
        whole = run(folder / "two")
        whole.train()
        if rank == 0:
            (folder / "two/checkpoints/iteration_0000007.safetensors").unlink()
        resumed = run(folder / "two")
        resumed.train(resume=True)
        return {**weights(whole), **{f"again {k}": v for k, v in weights(resumed).items()}}

    first, second = in_two_processes(work, tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    again = {name for name in first if name.startswith("again ")}
    assert again and all(torch.equal(first[k], first[k.removeprefix("again ")]) for k in again)
    states = run(tmp_path / "two").checkpoints.newest()[1]["shards"]
    assert len(states) == 2 and states[0]["unusable"] + states[1]["unusable"] > 0
    with pytest.raises(InputError, match="cannot resume: processes was 2, is 1. Restore that, or"):
        run(tmp_path / "two").train(resume=True)


def test_unsynchronised_training_keeps_and_evaluates_the_first_replica(tmp_path):
    def work(rank: int, folder: Path) -> Tensors:
        run = trainer(folder / "two", sync_gradients=False)
        run.model.training_settings = DistillationTraining(sync_gradients=False)
        run.train()
        run.model.eval().set_vocabulary(WORDS)
        scores = run.model([tiny_region_sample()])[0]["scores"]["boxes"]
        saved = run.checkpoints.newest()[0]
        name, value = next(iter(weights(run).items()))
        return {"scores": scores, "own": value, "saved": saved[f"model/{name}"]}

    first, second = in_two_processes(work, tmp_path)
    torch.testing.assert_close(first["scores"], second["scores"], atol=0, rtol=0)
    assert torch.equal(first["saved"], first["own"]) and not torch.equal(
        first["own"], second["own"]
    )


def test_a_loss_that_is_not_finite_in_one_process_stops_both_and_names_its_images(tmp_path):
    def work(rank: int, folder: Path) -> Tensors:
        run = trainer(folder / "two")
        losses, factor = run.model.losses, float("nan") if rank == 1 else 1.0
        run.model.losses = lambda s: {name: v * factor for name, v in losses(s).items()}
        with pytest.raises(Exception, match="not finite at iteration 0") as caught:
            run.train()
        guilty = f"{run.order.batch(0)[1].image}.jpg"
        innocent = f"{run.order.batch(0)[0].image}.jpg"
        assert guilty in str(caught.value) and innocent not in str(caught.value)
        return {}

    in_two_processes(work, tmp_path)


def test_processes_that_resume_from_folders_of_their_own_are_refused(tmp_path):
    trainer(tmp_path / "0", iterations=2).train()

    def work(rank: int, folder: Path) -> Tensors:
        with pytest.raises(InputError, match=r"do not agree on steps done \(0, 2\): .* one folder"):
            trainer(folder / str(rank)).train(resume=True)
        return {}

    in_two_processes(work, tmp_path)
