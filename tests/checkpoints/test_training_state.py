"""Training checkpoints: what they hold, and that damage never passes."""

import json
import pickle

import pytest
import safetensors.torch
import torch

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.training_state import (
    CheckpointFolder,
    load_training_state,
    pack,
    read_state,
    trained_parameters,
    trained_tensors,
    unpack,
    unpack_model,
    write_state,
)
from clipself_seg.errors import InputError
from clipself_seg.files import remove_leftovers
from clipself_seg.models.optimizer_groups import matrices_and_vectors
from clipself_seg.training.optimizer import build_adamw
from tests.tiny import tiny_clipself, tiny_samples


def trained(steps=1):
    model = tiny_clipself(trainable_blocks=2)
    optimizer = build_adamw(
        matrices_and_vectors(model.parameters(), 0.1), betas=(0.9, 0.999), eps=1e-8
    )
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2
        optimizer.zero_grad()
        model(tiny_samples(1, first=step))["loss_clipself"].backward()
        optimizer.step()
    return model, optimizer


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_state_survives_the_file_and_a_fresh_model(tmp_path):
    model, optimizer = trained()
    packed = pack(model, optimizer)
    write_state(tmp_path / "state.safetensors", packed, {"iteration": 1})
    tensors, facts = read_state(tmp_path / "state.safetensors")
    fresh, fresh_optimizer = trained(steps=0)
    unpack(tensors, fresh, fresh_optimizer)
    assert facts == {"iteration": 1} and same(pack(fresh, fresh_optimizer), packed)


def test_equal_states_give_equal_bytes(tmp_path):
    packed, facts = pack(*trained()), {"iteration": 1, "run": {"a": 1, "b": 2}}
    other_order = {"run": {"b": 2, "a": 1}, "iteration": 1}
    contents = set()
    for number in range(6):
        write_state(tmp_path / f"{number}.st", packed, other_order if number % 2 else facts)
        contents.add((tmp_path / f"{number}.st").read_bytes())
    assert len(contents) == 1


def test_a_checkpoint_holds_what_trains_and_nothing_else(tmp_path):
    model, optimizer = trained()
    kinds = {name.split("/")[0] for name in pack(model, optimizer)}
    assert kinds == {"model", "optimizer"}
    last = len(model.student.blocks) - 1
    kept = f"resblocks.{last - 1}.", f"resblocks.{last}."
    assert all(any(block in name for block in kept) for name in pack(model, optimizer))
    assert len(pack(model, optimizer)) == 4 * len(trained_parameters(model))


@pytest.mark.parametrize("norm", ["BatchNorm1d", "BatchNorm2d", "SyncBatchNorm"])
def test_statistics_of_a_norm_that_trains_are_a_part_of_a_checkpoint(norm):
    """MODEL.RESNETS.NORM is BN or SyncBN; somebody's own model may have another one."""
    make = getattr(torch.nn, norm)
    assert len(trained_tensors(make(2))) == 5 and len(trained_tensors(make(2, affine=False))) == 3
    assert not trained_tensors(make(2).requires_grad_(False))


def test_the_newest_few_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for iteration in (2, 10, 9_999_999, 10_000_000):
        folder.save(iteration, {"x": torch.tensor(iteration)}, RUN)
    names = [path.name for path in folder.paths()]
    assert names == ["iteration_9999999.safetensors", "iteration_10000000.safetensors"]
    assert folder.newest()[0]["x"] == 10_000_000


def test_a_half_written_file_is_no_checkpoint_and_is_removed(tmp_path):
    (tmp_path / ".iteration_0000004.safetensors.x1.part").mkdir()
    (tmp_path / ".iteration_0000004.safetensors.x1.part/part").write_bytes(b"half")
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.newest() is None
    remove_leftovers(folder.folder)
    assert not list(tmp_path.iterdir())


ONE = {"x": torch.ones(2)}
DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "a bit": lambda content: content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
    "metadata": lambda content: content.replace(b"iteration", b"iteratioN", 1),
    "a pickle": lambda content: pickle.dumps({"x": 1}),
    "of others": lambda content: safetensors.torch.save(ONE),
    "no metadata": lambda content: safetensors.torch.save(ONE, metadata={"digest": "0" * 64}),
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_checkpoint_is_refused_by_name_with_the_way_out(tmp_path, damage):
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(4, {"x": torch.randn(50)}, RUN)
    path = folder.save(8, {"x": torch.randn(50)}, RUN | {"iteration": 8})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        folder.newest()
    message = str(caught.value)
    assert path.name in message and "delete it to go on from iteration_0000004" in message
    assert len(message.splitlines()) <= 2
    path.unlink()
    assert folder.newest()[1] == RUN


@pytest.mark.parametrize("change", ["of shape", "lacks", "unexpected"])
def test_one_parameter_that_does_not_fit_is_refused_and_nothing_is_changed(change):
    model, optimizer = trained()
    packed = {name: value.detach().clone() + 1 for name, value in pack(model, optimizer).items()}
    name = next(name for name in packed if name.startswith("model/"))
    if change == "of shape":
        packed[name] = packed[name][:1]  # torch would copy the one row into every row
    elif change == "lacks":
        del packed[name]
    else:
        packed["model/extra"] = torch.ones(1)
    before = model.weights_hash()
    for put_back in (lambda: unpack_model(packed, model), lambda: unpack(packed, model, optimizer)):
        with pytest.raises(
            InputError, match=f"the checkpoint .*{change}.*: .*resume with|{change}.*; resume with"
        ):
            put_back()
    assert model.weights_hash() == before


def test_a_state_of_other_original_weights_is_refused(tmp_path):
    model, optimizer = trained()
    for weights in (model.original_hash(), "another"):
        facts = {"iteration": 1, "run": {"original weights": weights}}
        write_state(tmp_path / f"{weights}.st", pack(model, optimizer), facts)
    fresh, _ = trained(steps=0)
    load_training_state(tmp_path / f"{model.original_hash()}.st", fresh, fresh.original_hash)
    assert fresh.weights_hash() == model.weights_hash()
    with pytest.raises(InputError, match="another.st is .* of a run with other original weights"):
        load_training_state(tmp_path / "another.st", fresh, fresh.original_hash)


DEEP = "[" * 100_000


def signed(text):
    """The metadata of a state whose own metadata are this text."""
    return json.dumps({"digest": hash_tensors(ONE | {text: torch.empty(0)}), "facts": text})


@pytest.mark.parametrize(
    "metadata",
    ["[1]", "3", '"a"', DEEP, '{"digest": 1, "facts": []}', *map(signed, ("[1]", "3", DEEP))],
)
def test_metadata_of_a_state_that_are_no_object_are_refused(tmp_path, metadata):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(ONE, path, metadata={"checkpoint": metadata})
    with pytest.raises(InputError, match="x.safetensors"):
        read_state(path)


def test_a_state_that_names_no_run_is_refused(tmp_path):
    model, optimizer = trained()
    for number, facts in enumerate(({}, {"run": 3}, {"run": {}})):
        write_state(tmp_path / f"{number}.st", pack(model, optimizer), facts)
        with pytest.raises(InputError, match=f"{number}.st is .* of a run with other original"):
            load_training_state(tmp_path / f"{number}.st", model, model.original_hash)


RUN = {"iteration": 4, "scaler": {"scale": 2.0}, "run": {}}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"iteration": 4.0}, "iteration is 4.0, and has to be .*: delete it"),
        ({"run": [1]}, r"run is \[1\]"),
        ({"scaler": {"scale": "2"}}, "scaler.scale is '2'"),
    ],
)
def test_metadata_that_no_run_writes_are_named(tmp_path, change, message):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(4, {"x": torch.ones(2)}, RUN)
    assert folder.newest()[1] == RUN
    folder.save(4, {"x": torch.ones(2)}, RUN | change)
    with pytest.raises(InputError, match=f"iteration_0000004.safetensors: {message}"):
        folder.newest()


@pytest.mark.parametrize(
    "rename, value, message",
    [
        (lambda key: "optimizer/exp_avg", None, "lacks 1 tensor"),
        (lambda key: key, torch.ones(1, 1, 1), "of shape"),
        (lambda key: key, torch.tensor(1), "not floating point"),
    ],
    ids=["of nothing", "of another shape", "of another type"],
)
def test_moments_that_are_not_the_optimisers_are_refused(rename, value, message):
    model, optimizer = trained()
    packed = pack(model, optimizer)
    key = next(name for name in packed if name.endswith("/exp_avg"))
    moment = packed.pop(key)
    packed[rename(key)] = moment if value is None else value
    with pytest.raises(InputError, match=f"the optimiser's state of the checkpoint .*{message}"):
        unpack(packed, model, optimizer)
