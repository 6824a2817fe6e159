"""The allocator that each formulation is measured with."""

from __future__ import annotations

import torch

from bench import measure
from bench.measure import Run, time_in_turn


def test_the_plain_formulation_has_the_allocator_as_torch_finds_it(monkeypatch):
    said = []
    monkeypatch.setattr(measure, "keep_freed_memory", lambda device: said.append(f"keep, {device}"))
    monkeypatch.setattr(measure, "hand_back_freed_memory", lambda: said.append("hand back"))
    runs = {name: Run(lambda _, name=name: said.append(name)) for name in ("x", "plain x")}
    time_in_turn(runs, torch.device("cpu"), 1, lambda line: None)
    once = ["keep, cpu", "x", "hand back", "plain x"]
    assert said == [*once, "keep, cpu", "x", *once[1:]]  # "x" finds its memory when it is timed


def test_runs_of_one_formulation_keep_their_memory_between_them(monkeypatch):
    said = []
    monkeypatch.setattr(measure, "keep_freed_memory", lambda device: said.append("keep"))
    runs = {name: Run(lambda _, name=name: said.append(name)) for name in ("x", "y")}
    time_in_turn(runs, torch.device("cpu"), 2, lambda line: None)
    assert said == ["keep", *3 * ["x", "y"]]
