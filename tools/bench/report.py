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
LOWER = "bfloat16"  # in which a run is measured beside float32, under its name behind this word
# Runs without a plain formulation of their own; the official evaluator takes the best class of all scores.
PLAIN = {CHECKPOINTED: "plain step", "best class": "plain image"}


def run_benchmark(case: Case, report: Callable[[str], None], lower: bool = False) -> dict[str, Any]:
    """Measure a case.

    Args:
        case: what to measure.
        report: called with the progress.
        lower: whether our runs with matrix products are timed in bfloat16 too, in turn with all others.

    Returns:
        "case", "peak_flops" (operations a second of the best matrix product), "products" (what computes them: the
        widest instructions that torch uses on this CPU, its family of AMD's, and the choices for linear layers and long
        attention), "runs" (by name: "seconds", their median; "all_seconds"; "peak_fraction" where operations are
        counted; "memory_bytes" but in `lower`) and "provenance".

    Raises:
        InputError: the model, its size or the memory do not fit, or nothing is called as in `only`.
    """
    torch.set_num_threads(case.threads)
    device = torch.device(case.device)
    dtype = getattr(torch, case.precision)
    report("building the model")
    runs = chosen_runs(build_runs(case), case.only)
    if lower:
        ours = [name for name in runs if runs[name].flops and not name.startswith("plain ")]
        low = dataclasses.replace(case, precision=LOWER)
        runs |= {f"{LOWER} {name}": run for name, run in build_runs(low).items() if name in ours}
    report("matrix products, for the peak")
    before = matmul_peak(dtype, device, case.repeats)
    seconds = time_in_turn(runs, device, case.repeats, report)
    peak = max(before, matmul_peak(dtype, device, case.repeats))
    figures = {name: _figures(runs[name], taken, peak) for name, taken in seconds.items()}
    del runs
    torch.cuda.empty_cache()  # for the processes that measure memory
    for name in (name for name in figures if not name.startswith(LOWER)):
        report(f"memory of a process of its own: {name}")
        figures[name]["memory_bytes"] = peak_memory(build_runs, case, name)
    return {
        "case": dataclasses.asdict(case),
        "peak_flops": peak,
        "products": _products() if device.type == "cpu" else "of the GPU",
        "runs": figures,
        "provenance": provenance(seed=0, device=case.device),
    }


def _products() -> str:
    """Names what computes products on this CPU."""
    family = f" of AMD's family {amd_family()}" * bool(amd_family())
    linear = "convolutions" if CONVOLUTION.chosen else "matrix products"
    attention = ", long attention by oneDNN" * ATTENTION.chosen
    widest = torch.backends.cpu.get_cpu_capability()
    return f"{widest}{family}, linear layers as {linear}{attention}"


def chosen_runs(runs: Mapping[str, Run], only: Sequence[str]) -> dict[str, Run]:
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
