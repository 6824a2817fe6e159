"""Runs a benchmark and prints its figures side by side."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tabulate import tabulate

from bench.case import Case
from bench.detection_workload import of_image
from bench.measure import (
    Peaks,
    Run,
    matmul_peaks,
    peak_memory,
    time_in_turn,
)
from bench.panoptic_workload import MERGED, QUERIES, over_image
from bench.pq_workload import over_decoding
from bench.workloads import build_runs
from clipself_seg.clip.linear import amd_family, choice, onednn_is_exact
from clipself_seg.errors import InputError, nearest
from clipself_seg.provenance import provenance

PARTS = ["student forward", "student backward", "teacher forward"]
CHECKPOINTED = "checkpointed step"
GIB = 2**30
OF_IMAGE = {
    "others": "neither tower nor convolutions and linear layers, of all parts",
    "time": "time of an image, of the plain one",
    "memory": "memory beyond the tower, of the plain one",
}


def run_benchmark(case: Case, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure a case.

    Args:
        case: what to measure.
        report: called with the progress.

    Returns:
        "case", "peak_flops" (operations a second of the best matrix product), "torch_peak_flops" (of
        torch's own), "instructions" (the widest that torch uses on this CPU, and AMD's family of it), "linear_layers"
        (why they are computed as they are, and whether long attention is oneDNN's), "runs" (by name: "seconds", their
        median; "all_seconds"; "images_per_second";
        "flops_per_second", "peak_fraction" and "torch_peak_fraction" where operations are counted;
        "memory_bytes" where it is measured), "gains"
        (by name: "speed" and "memory", plain over ours), for "distill" "step_overhead", for training
        steps "checkpointing_memory", for "panoptic" "over_image" (by CLIP branch: its time over that of
        a plain forward), for "pq" "over_decoding" (see `over_decoding`), for "detection" "of_image" (see
        `of_image`), and "provenance".

    Raises:
        InputError: the model, its size or the memory do not fit, or nothing is called as in `only`.
    """
    torch.set_num_threads(case.threads)
    device = torch.device(case.device)
    dtype = getattr(torch, case.precision)
    report("building the model")
    runs = chosen_runs(build_runs(case), case.only)
    report("matrix products, for the peak")
    before = matmul_peaks(dtype, device, case.repeats)
    seconds = time_in_turn(runs, device, case.repeats, report, case.plain_allocator)
    after = matmul_peaks(dtype, device, case.repeats)
    peaks = Peaks(*map(max, before, after))
    figures = {name: _figures(case, runs[name], taken, peaks) for name, taken in seconds.items()}
    measured = {name: run.memory for name, run in runs.items()}
    del runs
    torch.cuda.empty_cache()  # for the processes that measure memory
    for name in (name for name in figures if measured[name]):
        report(f"memory of a process of its own: {name}")
        figures[name]["memory_bytes"] = peak_memory(build_runs, case, name)
    return {
        "case": dataclasses.asdict(case),
        "peak_flops": peaks.best,
        "torch_peak_flops": peaks.torch,
        "instructions": _instructions(),
        "linear_layers": _products() if device.type == "cpu" else "of the GPU",
        "runs": figures,
        **_comparisons(case, figures),
        "provenance": provenance(seed=0),
    }


def _instructions() -> str:
    family = amd_family()
    return torch.backends.cpu.get_cpu_capability() + f" of AMD's family {family}" * bool(family)


def _products() -> str:
    return choice().reason + "; long attention by oneDNN" * onednn_is_exact()


def chosen_runs(runs: Mapping[str, Run], only: Sequence[str]) -> Mapping[str, Run]:
    """Those of some names, and their plain formulations."""
    for name in only:
        if name not in runs:
            raise InputError(f'--only "{name}" is not measured here; {nearest(name, runs)}')
    chosen = {*only, *(f"plain {name}" for name in only)} or runs.keys()
    return {name: run for name, run in runs.items() if name in chosen}


def _figures(case: Case, run: Run, seconds: list[float], peaks: Peaks) -> dict[str, Any]:
    median = statistics.median(seconds)
    figures: dict[str, Any] = {"seconds": median, "all_seconds": seconds}
    figures["images_per_second"] = case.batch / median
    if run.flops:
        figures["flops_per_second"] = run.flops / median
        figures["peak_fraction"] = run.flops / median / peaks.best
        figures["torch_peak_fraction"] = run.flops / median / peaks.torch
    return figures


def _comparisons(case: Case, figures: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    gains: dict[str, dict[str, float]] = {}
    pairs = [name for name in figures if f"plain {name}" in figures]
    for name in pairs:
        ours, plain = figures[name], figures[f"plain {name}"]
        gains[name] = {"speed": plain["seconds"] / ours["seconds"]}
        if "memory_bytes" in ours:
            gains[name]["memory"] = plain["memory_bytes"] / ours["memory_bytes"]
    summary: dict[str, Any] = {"gains": gains}
    if "samples" in figures:  # what follows each other, rather than parts of a whole
        total = sum(figures[name]["seconds"] for name in pairs)
        plain_total = sum(figures[f"plain {name}"]["seconds"] for name in pairs)
        gains["all together"] = {"speed": plain_total / total}
    if figures.keys() >= {"step", *PARTS}:
        parts = sum(figures[name]["seconds"] for name in PARTS)
        summary["step_overhead"] = figures["step"]["seconds"] / parts - 1
    if case.task == "panoptic":
        summary["over_image"] = over_image(figures)
    if case.task == "pq":
        summary["over_decoding"] = over_decoding(figures)
    if case.task == "detection":
        summary["of_image"] = of_image(figures)
    if figures.keys() >= {"step", CHECKPOINTED}:
        summary["checkpointing_memory"] = (
            figures[CHECKPOINTED]["memory_bytes"] / figures["step"]["memory_bytes"]
        )
    return summary


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
            _scaled(numbers.get("torch_peak_fraction"), 100),
            _scaled(numbers.get("memory_bytes"), 1 / GIB),
        ]
        for name, numbers in runs.items()
    ]
    heads = ["", "ms", "images/s", "GFLOP/s", "% of peak", "% of torch's", "peak GiB"]
    gains = [
        [name, numbers["speed"], numbers.get("memory")]
        for name, numbers in results["gains"].items()
    ]
    lines = [
        f"{headline(case)}, {case['threads']} threads, {case['device']}; "
        f"matmul peak {results['peak_flops'] / 1e9:.0f} GFLOP/s, torch's own "
        f"{results['torch_peak_flops'] / 1e9:.0f}",
        f"{results['provenance']['device']}, {results['instructions']}; linear layers: {results['linear_layers']}",
        "",
        tabulate(rows, heads, floatfmt=["", ".1f", ".3f", ".1f", ".1f", ".1f", ".2f"]),
        "",
        tabulate(gains, ["plain / ours", "time", "memory"], floatfmt=["", ".2f", ".2f"]),
    ]
    if "step_overhead" in results:
        overhead = 100 * results["step_overhead"]
        lines += ["", f"step over the sum of its three parts: {overhead:+.1f} %"]
    for branch, times in results.get("over_image", {}).items():
        lines += ["", f"{branch}: {times:.3f} x a plain image forward at its input size"]
    if results.get("over_decoding"):
        lines += ["", f"from files: {results['over_decoding']:.2f} x the decoding of their PNGs"]
    for name, fraction in results.get("of_image", {}).items():
        lines += ["", f"{OF_IMAGE[name]}: {100 * fraction:.1f} %"]
    if "checkpointing_memory" in results:
        percent = 100 * results["checkpointing_memory"]
        lines += ["", f"peak memory with checkpointing: {percent:.1f} % of that without"]
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
    if case["task"] in ("pq", "folder"):
        return f"{'pairs' if case['task'] == 'pq' else 'images'} of 480 x 640 pixels"
    if case["task"] != "semseg":
        return f"{case['size']} px"
    return f"{case['classes']} classes, {'training' if case['training'] else 'sliding windows'}"


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
