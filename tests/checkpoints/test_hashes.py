"""States of weights: every write that torch counts makes a new one, and every optimiser's step."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from clipself_seg.checkpoints import hashes
from clipself_seg.checkpoints.hashes import hash_tensors, invalidate, weights_hash, weights_state
from clipself_seg.models.optimizer_groups import matrices_and_vectors
from clipself_seg.training.optimizer import build_adamw


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))


def step(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def inference(write):
    with torch.inference_mode():
        write()


def exchange(module):
    module[0].weight, module[2].weight = module[2].weight, module[0].weight


def load(module, assign):
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state["0.bias"] += 1
    module.load_state_dict(state, assign=assign)


def replace_without_a_trace(module):
    """Memory is freed, and other weights stand at the same address, in the same object."""
    buffer = bytearray(module[0].weight.detach().numpy().tobytes())
    module[0].weight.data = torch.frombuffer(buffer, dtype=torch.float32).view(4, 4)
    state, address = weights_state(module), module[0].weight.data_ptr()
    buffer[:] = bytes(len(buffer))
    module[0].weight.data = torch.frombuffer(buffer, dtype=torch.float32).view(4, 4)
    assert module[0].weight.data_ptr() == address and weights_state(module) is not state


def another_counter(module):
    """Another object at the same memory, whose own counter says the same."""
    module[0].weight.mul_(1)
    state = weights_state(module)
    version = module[0].weight._version
    module[0].weight = nn.Parameter(module[0].weight.data)
    for _ in range(version):
        module[0].weight.mul_(2)
    assert weights_state(module) is not state


def new_data(module, make):
    """Other data, while those from before live on."""
    module.kept_alive = module[0].weight.data
    module[0].weight.data = make(module[0].weight.data)


ADAMW = {"fused": True}, {"foreach": True}, {"foreach": False}
WRITES = {
    "in place": lambda m: m[0].weight.mul_(2),
    "of a part": lambda m: m[0].weight[1:].zero_(),
    "of a buffer": lambda m: m[1].running_mean.add_(1),
    "state dict": lambda m: m.state_dict()["0.weight"].mul_(2),
    "inference": lambda m: inference(lambda: m[0].weight.mul_(2)),
    "load_state_dict": lambda m: load(m, assign=False),
    "assigned": lambda m: load(m, assign=True),
    "new parameter": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight * 2)),
    "new data": lambda m: setattr(m[0].weight, "data", m[0].weight * 2),
    "new data, old kept": lambda m: new_data(m, lambda data: data * 2),
    "data transposed": lambda m: new_data(m, torch.Tensor.t),
    "another counter": another_counter,
    "new data at the address of the old": replace_without_a_trace,
    "exchanged": exchange,
    "appended": lambda m: m.append(nn.Linear(1, 1)),
    "dtype and back": lambda m: m.half().float(),
    "device": lambda m: m.to("meta"),
    "vector": lambda m: nn.utils.vector_to_parameters(torch.ones(20), m[0].parameters()),
    "training run": lambda m: step(
        build_adamw(matrices_and_vectors(m.parameters(), 0.1), betas=(0.9, 0.99), eps=1e-8)
    ),
    **{
        f"AdamW {how}": lambda m, how=how: step(torch.optim.AdamW(m.parameters(), **how))
        for how in ADAMW
    },
    "fused SGD": lambda m: step(torch.optim.SGD([m[2].bias], lr=0.1, fused=True)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@torch.no_grad()
def test_every_write_makes_a_new_state(module, write):
    state = weights_state(module)
    assert weights_state(module) is state
    write(module)
    assert weights_state(module) is not state
    assert weights_state(module) is weights_state(module)


def test_reading_and_training_something_else_keep_the_state(module):
    state = weights_state(module)
    module.eval()(torch.ones(2, 4)).sum().backward()
    module.requires_grad_(False).to("cpu").float().zero_grad()
    hash_tensors(module.state_dict())
    step(torch.optim.AdamW(nn.Linear(4, 4).parameters(), fused=True))
    assert weights_state(module) is state


def test_writes_through_data_need_invalidate(module):
    state, before = weights_state(module), weights_hash(module)
    module[0].weight.data.mul_(2)
    assert weights_state(module) is state and weights_hash(module) == before
    invalidate(module)
    assert weights_state(module) is not state and weights_hash(module) != before
    module[0].weight.data.div_(2)
    invalidate(module)
    assert weights_hash(module) == before


def test_a_hash_is_computed_once_for_each_state(module, monkeypatch):
    counted = []
    monkeypatch.setattr(hashes, "hash_tensors", lambda s: counted.append(1) or hash_tensors(s))
    first = weights_hash(module)
    assert weights_hash(module) == first == hash_tensors(module.state_dict()) and len(counted) == 1
    with torch.no_grad():
        module[2].bias.add_(1)
    assert weights_hash(module) == hash_tensors(module.state_dict()) != first and len(counted) == 2


def test_a_copy_has_a_state_of_its_own(module):
    state = weights_state(module)
    copied, copied_state = copy.deepcopy((module, state))
    assert weights_state(copied) not in (state, copied_state)
    with torch.no_grad():
        copied[0].weight.zero_()
    assert weights_state(module) is state


def test_weights_without_versions_have_no_state_that_lasts():
    with torch.inference_mode():
        module = nn.Linear(2, 2)
        assert weights_state(module) is not weights_state(module)
        before = weights_hash(module)
        module.weight.mul_(2)
        assert weights_hash(module) != before
    assert weights_state(module) is not weights_state(module)


def test_where_torch_does_not_count_writes_every_question_gets_a_new_state(module, monkeypatch):
    monkeypatch.setattr(hashes, "COUNTS_WRITES", False)
    assert weights_state(module) is not weights_state(module)


def test_nothing_outlives_the_module():
    module = nn.Linear(2, 2)
    weights_state(module)
    weight = weakref.ref(module.weight)
    del module
    gc.collect()
    assert weight() is None


def test_weights_can_still_be_swapped_by_torch(module):
    state, weight = weights_state(module), module[0].weight
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert module[0].weight is weight and weights_state(module) is not state
