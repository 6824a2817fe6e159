"""Runs a benchmark: time, memory and operations of each of its parts."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bench.case import Case
from bench.measure import Run, matmul_peak, peak_memory, time_in_turn
from bench.workloads import build_runs
from clipself_seg.clip.layers import ATTENTION
from clipself_seg.clip.levers import amd_family
from clipself_seg.clip.linear import CONVOLUTION
from clipself_seg.errors import InputError, nearest
from clipself_seg.provenance import provenance

CHECKPOINTED = "checkpointed step"
# Runs without a plain formulation of their own; the official evaluator takes the best class of all scores.
PLAIN = {CHECKPOINTED: "plain step", "best class": "plain image"}


def run_benchmark(case: Case, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure a case.

    Args:
        case: what to measure.
        report: called with the progress.

    Returns:
        "case", "peak_flops" (operations a second of the best matrix product), "instructions" (the widest that torch
        uses on this CPU, and AMD's family of it), "linear_layers" (why they are computed as they are, and whether long
        attention is oneDNN's), "runs" (by name: "seconds", their median; "all_seconds"; "peak_fraction" where
        operations are counted; "memory_bytes" where it is measured) and "provenance".

    Raises:
        InputError: the model, its size or the memory do not fit, or nothing is called as in `only`.
    """
    torch.set_num_threads(case.threads)
    device = torch.device(case.device)
    dtype = getattr(torch, case.precision)
    report("building the model")
    runs = chosen_runs(build_runs(case), case.only)
    report("matrix products, for the peak")
    before = matmul_peak(dtype, device, case.repeats)
    seconds = time_in_turn(runs, device, case.repeats, report)
    peak = max(before, matmul_peak(dtype, device, case.repeats))
    figures = {name: _figures(runs[name], taken, peak) for name, taken in seconds.items()}
    measured = {name: run.memory for name, run in runs.items()}
    del runs
    torch.cuda.empty_cache()  # for the processes that measure memory
    for name in (name for name in figures if measured[name]):
        report(f"memory of a process of its own: {name}")
        figures[name]["memory_bytes"] = peak_memory(build_runs, case, name)
    return {
        "case": dataclasses.asdict(case),
        "peak_flops": peak,
        "instructions": _instructions(),
        "linear_layers": _products() if device.type == "cpu" else "of the GPU",
        "runs": figures,
        "provenance": provenance(seed=0),
    }


def _instructions() -> str:
    family = amd_family()
    return torch.backends.cpu.get_cpu_capability() + f" of AMD's family {family}" * bool(family)


def _products() -> str:
    products = "convolutions" if CONVOLUTION.chosen else "matrix products"
    return products + "; long attention by oneDNN" * ATTENTION.chosen


def chosen_runs(runs: Mapping[str, Run], only: Sequence[str]) -> Mapping[str, Run]:
    """The runs of some names, and their plain formulations."""
    for name in only:
        if name not in runs:
            raise InputError(f'--only "{name}" is not measured here; {nearest(name, runs)}')
    chosen = {*only, *map(plain_of, only)} or runs.keys()
    return {name: run for name, run in runs.items() if name in chosen}


def plain_of(name: str) -> str:
    """The plain formulation of a run."""
    return PLAIN.get(name, f"plain {name}")


def _figures(run: Run, seconds: list[float], peak: float) -> dict[str, Any]:
    median = statistics.median(seconds)
    figures: dict[str, Any] = {"seconds": median, "all_seconds": seconds}
    if run.flops:
        figures["peak_fraction"] = run.flops / median / peak
    return figures
