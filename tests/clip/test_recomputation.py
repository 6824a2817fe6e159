"""What blocks keep for the backward pass: gradients, operations done again, and bytes of each choice."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from clipself_seg.clip import runtime
from clipself_seg.clip.eva import EvaBlock
from clipself_seg.clip.layers import ResidualBlock, Transformer
from clipself_seg.clip.positions import rotary_factors
from clipself_seg.clip.runtime import run_block

ALL, SELECTED, INPUT = "all", "selected", "input"


@pytest.fixture(params=["OpenAI", "EVA"])
def block_and_others(request):
    torch.manual_seed(0)
    if request.param == "OpenAI":
        transformer = Transformer([ResidualBlock(width=64, heads=2, quick_gelu=True)])
        transformer.initialise()
        return transformer.resblocks[0], ()
    return EvaBlock(width=64, heads=2, hidden=176), (
        rotary_factors((7, 9), 32, torch.device("cpu")),
    )


class Operations(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[operator.overloadpacket.__name__] += 1
        return operator(*args, **(kwargs or {}))


def run(kept, block, others, monkeypatch):
    """Result, gradients, the backward pass's operators, and bytes alive after the forward pass."""
    monkeypatch.setattr(runtime, "FEWEST_ELEMENTS", 10**9 if kept == ALL else 0)
    torch.manual_seed(1)
    x = torch.randn(2, 64, 64, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = run_block(block, x, *others, checkpointing=kept == INPUT)
    alive = sum(event.self_cpu_memory_usage for event in profiled.key_averages())
    with Operations() as operations:
        gradients = torch.autograd.grad(result.square().sum(), [x, *block.parameters()])
    return [result, *gradients], operations.counts, alive


def test_every_choice_has_the_same_bits(block_and_others, monkeypatch):
    plain, *others = (
        run(kept, *block_and_others, monkeypatch)[0] for kept in (ALL, SELECTED, INPUT)
    )
    for found in others:
        for one, other in zip(found, plain, strict=True):
            assert torch.equal(one, other)


def test_no_product_and_no_attention_is_computed_twice(block_and_others, monkeypatch):
    plain, selected, whole = (
        run(kept, *block_and_others, monkeypatch)[1] for kept in (ALL, SELECTED, INPUT)
    )
    heavy = [name for name in whole if name.endswith("mm") or "dot_product" in name]
    assert {name: plain[name] for name in heavy} == {name: selected[name] for name in heavy}
    assert sum(whole[name] for name in heavy) > sum(plain[name] for name in heavy)
    assert plain["native_layer_norm"] == 0 < selected["native_layer_norm"]


def test_bytes_kept_fall_from_choice_to_choice(block_and_others, monkeypatch):
    plain, selected, whole = (
        run(kept, *block_and_others, monkeypatch)[2] for kept in (ALL, SELECTED, INPUT)
    )
    assert selected < 0.72 * plain
    assert whole < 0.25 * selected


def test_without_gradients_and_below_the_threshold_the_block_is_simply_called(monkeypatch):
    calls = []
    monkeypatch.setattr(runtime, "checkpoint", lambda *args, **kwargs: calls.append(1))
    x = torch.ones(2, 3, requires_grad=True)
    assert torch.equal(run_block(torch.neg, x, checkpointing=False), -x)
    with torch.no_grad():
        assert torch.equal(run_block(torch.neg, x, checkpointing=True), -x)
    assert not calls
    run_block(torch.neg, x, checkpointing=True)
    assert calls
