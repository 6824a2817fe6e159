"""Runs a benchmark and prints its figures side by side."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tabulate import tabulate

from bench.case import Case
from bench.measure import Run, matmul_peak, peak_memory, time_in_turn
from bench.panoptic_workload import MERGED, QUERIES
from bench.workloads import build_runs
from clipself_seg.clip.linear import amd_family, choice, onednn_is_exact
from clipself_seg.errors import InputError, nearest
from clipself_seg.provenance import provenance

CHECKPOINTED = "checkpointed step"
GIB = 2**30


def run_benchmark(case: Case, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure a case.

    Args:
        case: what to measure.
        report: called with the progress.

    Returns:
        "case", "peak_flops" (operations a second of the best matrix product), "instructions" (the widest that torch
        uses on this CPU, and AMD's family of it), "linear_layers" (why they are computed as they are, and whether long
        attention is oneDNN's), "runs" (by name: "seconds", their median; "all_seconds"; "images_per_second";
        "flops_per_second" and "peak_fraction" where operations are counted; "memory_bytes" where it is measured),
        "gains" (by name: "speed" and "memory", plain over ours) and "provenance".

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
    seconds = time_in_turn(runs, device, case.repeats, report, case.plain_allocator)
    peak = max(before, matmul_peak(dtype, device, case.repeats))
    figures = {name: _figures(case, runs[name], taken, peak) for name, taken in seconds.items()}
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
        "gains": _gains(figures),
        "provenance": provenance(seed=0),
    }


def _instructions() -> str:
    family = amd_family()
    return torch.backends.cpu.get_cpu_capability() + f" of AMD's family {family}" * bool(family)


def _products() -> str:
    return choice().reason + "; long attention by oneDNN" * onednn_is_exact()


def chosen_runs(runs: Mapping[str, Run], only: Sequence[str]) -> Mapping[str, Run]:
    """The runs of some names, and their plain formulations."""
    for name in only:
        if name not in runs:
            raise InputError(f'--only "{name}" is not measured here; {nearest(name, runs)}')
    chosen = {*only, *(f"plain {name}" for name in only)} or runs.keys()
    return {name: run for name, run in runs.items() if name in chosen}


def _figures(case: Case, run: Run, seconds: list[float], peak: float) -> dict[str, Any]:
    median = statistics.median(seconds)
    figures: dict[str, Any] = {"seconds": median, "all_seconds": seconds}
    figures["images_per_second"] = case.batch / median
    if run.flops:
        figures["flops_per_second"] = run.flops / median
        figures["peak_fraction"] = run.flops / median / peak
    return figures


def _gains(figures: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    gains: dict[str, dict[str, float]] = {}
    for name in (name for name in figures if f"plain {name}" in figures):
        ours, plain = figures[name], figures[f"plain {name}"]
        gains[name] = {"speed": plain["seconds"] / ours["seconds"]}
        if "memory_bytes" in ours:
            gains[name]["memory"] = plain["memory_bytes"] / ours["memory_bytes"]
    return gains


def as_text(results: Mapping[str, Any]) -> str:
    """The results of `run_benchmark` as tables."""
    case, runs = results["case"], results["runs"]
    rows = [
        [
            name,
            1000 * numbers["seconds"],
            numbers["images_per_second"],
            _scaled(numbers.get("flops_per_second"), 1e-9),
            _scaled(numbers.get("peak_fraction"), 100),
            _scaled(numbers.get("memory_bytes"), 1 / GIB),
        ]
        for name, numbers in runs.items()
    ]
    heads = ["", "ms", "images/s", "GFLOP/s", "% of peak", "peak GiB"]
    gains = [
        [name, numbers["speed"], numbers.get("memory")]
        for name, numbers in results["gains"].items()
    ]
    lines = [
        f"{headline(case)}, {case['threads']} threads, {case['device']}; "
        f"matmul peak {results['peak_flops'] / 1e9:.0f} GFLOP/s",
        f"{results['provenance']['device']}, {results['instructions']}; linear layers: {results['linear_layers']}",
        "",
        tabulate(rows, heads, floatfmt=["", ".1f", ".3f", ".1f", ".1f", ".2f"]),
        "",
        tabulate(gains, ["plain / ours", "time", "memory"], floatfmt=["", ".2f", ".2f"]),
    ]
    return "\n".join(lines)


def headline(case: Mapping[str, Any]) -> str:
    """Task, model, sizes and precision of a case as in JSON."""
    what = f"{case['task']}: {case['model']}, {_extent(case)}"
    return f"{what}, batch {case['batch']}, {case['precision']}{', compiled' * case['compile']}"


def _extent(case: Mapping[str, Any]) -> str:
    if case["task"] == "panoptic":
        queries, merged = (case["queries"] or count for count in (QUERIES, MERGED))
        return f"{queries} queries, {merged} in the merge, {case['classes']} classes"
    if case["task"] == "detection":
        return f"{case['kind']}, {case['size']} px, {case['classes']} classes"
    if case["task"] != "semseg":
        return f"{case['size']} px"
    return f"{case['classes']} classes, {'training' if case['training'] else 'sliding windows'}"


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
