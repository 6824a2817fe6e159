"""Each kind of operation that makes Python wait for a GPU is seen, and those that do not wait are not."""

import pytest
import torch
from torch import nn
from torchvision.ops import nms, roi_align

from bench.accelerator import ACCELERATOR, on_host
from tests.host_syncs import HostSyncs, on_accelerator

VALUES = torch.tensor([[0.5, -1.0, 2.0], [0.5, 0.0, -3.0]])
COUNTS = torch.tensor([1, 2])
BOXES = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]])


class Held(nn.Module):
    """Tensors of a model."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(VALUES.clone())
        self.register_buffer("counts", COUNTS.clone())
        self.register_buffer("boxes", BOXES.clone())


@pytest.fixture
def held():
    return on_accelerator(Held()).requires_grad_(False)


def put(held, values):
    held.values[held.values > 0] = values


# Kind -> what does it, the operation that is recorded, and how often.
KINDS = {
    "item": (lambda m: m.counts.max().item(), "aten._local_scalar_dense.default"),
    "cpu": (lambda m: m.values.cpu().numpy(), "aten._to_copy.default"),
    "to host in place": (lambda m: torch.zeros(2, 3).copy_(m.values), "aten.copy_.default"),
    "nonzero": (lambda m: (m.values > 0).nonzero(), "aten.nonzero.default"),
    "mask as index": (lambda m: m.values[m.values > 0], "aten.index.Tensor"),
    "put at a mask": (lambda m: put(m, m.values[0, :2].repeat(2)[:3]), "aten.index_put_.default"),
    "repeats": (
        lambda m: m.values.repeat_interleave(m.counts, dim=0),
        "aten.repeat_interleave.Tensor",
    ),
    "nms": (lambda m: nms(m.boxes, m.boxes[:, 3], 0.5), "torchvision.nms.default"),
    "inverse": (
        lambda m: torch.linalg.inv(m.values @ m.values.T),
        "aten._linalg_check_errors.default",
    ),
    "torch.tensor": (lambda m: torch.tensor([1.0, 2.0], device=ACCELERATOR), None),
    "copy to the device": (lambda m: VALUES.to(m.values.device), None),
    "copy in place": (lambda m: m.values.copy_(VALUES), "aten.copy_.default"),
    "index in host memory": (lambda m: m.values[torch.tensor([1, 0])], "aten.index.Tensor"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_recorded_with_its_line(held, kind):
    run, operation = KINDS[kind]
    with HostSyncs() as syncs:
        run(held)
    (sync,) = syncs.syncs
    assert sync.operation == (operation or "aten._to_copy.default")
    file, line = sync.place.split(":")
    assert file == "tests/test_host_syncs.py" and int(line) and sync.source
    with pytest.raises(AssertionError, match=f"{file}:{line}"):
        syncs.expect({})
    syncs.expect({sync.function: 1})
    with pytest.raises(AssertionError, match="any more"):
        syncs.expect({sync.function: 2})


def filled_where(held):
    held.values[held.values > 0] = 0.0
    return held.values.masked_fill(held.values < 0, 1.0)


def sent_ahead(held):
    return VALUES.to(ACCELERATOR, non_blocking=True) + held.values


def repeated(held):
    return held.values.repeat_interleave(held.counts, dim=0, output_size=3)


def pooled(held):
    boxes = torch.cat([torch.zeros(2, 1, device=held.boxes.device), held.boxes], dim=1)
    return roi_align(held.values[None, None], boxes, 2)


def chosen(held):
    best = held.values.argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    return torch.where(held.values[rows, best] > 0, best, -1) + torch.full_like(best, 2)


@pytest.mark.parametrize("run", [filled_where, sent_ahead, repeated, pooled, chosen])
def test_what_does_not_wait_is_not_recorded_and_computes_as_on_the_cpu(held, run):
    with HostSyncs() as syncs:
        computed = run(held)
    plain = Held().requires_grad_(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.test_host_syncs.ACCELERATOR", torch.device("cpu"))
        assert torch.equal(on_host(computed), run(plain))
    syncs.expect({})


def test_gradients_are_those_of_the_cpu_and_waiting_in_the_backward_pass_is_seen():
    class Read(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2 * gradient.flatten()[0].item()

    def step(model):
        Read.apply(model.values.softmax(dim=1)).square().sum().backward()
        return model.values.grad

    with HostSyncs() as syncs:
        computed = step(on_accelerator(Held()))
    assert torch.equal(on_host(computed), step(Held()))
    assert [(s.operation, s.source.split(".")[-1]) for s in syncs.syncs] == [
        ("aten._local_scalar_dense.default", "item()")
    ]


def test_tensors_on_two_devices_are_refused_as_on_a_gpu(held):
    with HostSyncs(), pytest.raises(RuntimeError, match="aten.* on two devices"):
        held.values + VALUES
