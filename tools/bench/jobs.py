"""Runs the benchmarks of all tasks, each beside its plain formulation, and prints one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from bench.case import Case
from bench.report import CHECKPOINTED, plain_of, run_benchmark
from clipself_seg.errors import InputError, nearest

EVA, CAT_SEG_CLIP, ODISE_CLIP = "EVA02-B-16", "ViT-B-16-quickgelu", "ViT-L-14-336-quickgelu"
GENERATOR = ("generator", "masked attention")  # ODISE's two large parts
GIB = 2**30


class Job(NamedTuple):
    """One benchmark and the rows of the table that it gives.

    Attributes:
        label: in the table.
        given: fields of its `Case`, beside those that all jobs have in common.
        rows: names of its runs that the table has; no others are measured, unless "only" is given.
    """

    label: str
    given: Mapping[str, Any]
    rows: tuple[str, ...]

    def case(self, common: Mapping[str, Any]) -> Case:
        """The `Case`, with the fields that all jobs have in common."""
        return Case(**{"only": self.rows, **self.given, **common})


def _semseg(classes: int) -> dict[str, Any]:
    return {"task": "semseg", "model": CAT_SEG_CLIP, "classes": classes}


JOBS = (
    Job("dense features, ViT-B/16, 1024 px", {"task": "dense", "model": "ViT-B-16"}, ("dense",)),
    Job(
        f"CLIPSelf, {EVA}, 1024 px, 2 images",
        {"task": "distill", "model": EVA, "batch": 2},
        ("step", CHECKPOINTED),
    ),
    Job(f"regions, {EVA}, 1024 px", {"task": "regions", "model": EVA}, ("scores",)),
    Job("CAT-Seg ViT-B/16, 20 classes", _semseg(20), ("image",)),
    Job("CAT-Seg ViT-B/16, 150 classes", _semseg(150), ("image",)),
    Job("CAT-Seg ViT-B/16, 847 classes", _semseg(847), ("image", "best class")),
    Job(
        "CAT-Seg ViT-B/16, 171 classes",
        {"task": "semseg", "model": CAT_SEG_CLIP, "classes": 171, "training": True},
        ("step", CHECKPOINTED),
    ),
    Job(
        "ODISE, 100 queries, 133 classes",
        {"task": "panoptic", "model": ODISE_CLIP, "classes": 133},
        (*GENERATOR, "dense pooling", "merge"),
    ),
    Job(
        f"F-ViT {EVA}, OV-LVIS, 1024 px",
        {"task": "detection", "model": EVA, "classes": 1203},
        ("image", "behind the tower"),
    ),
)


def run_all(
    common: Mapping[str, Any], only: Sequence[str], report: Callable[[str], None]
) -> dict[str, Any]:
    """Measure all jobs, one after the other.

    Args:
        common: fields of every job's `Case`: "repeats", "threads", "device", "precision".
        only: labels of jobs, or the first words of some; () is all.
        report: called with the progress.

    Returns:
        "jobs" (by label what `run_benchmark` returns) and "rows" (see `rows_of`).

    Raises:
        InputError: no job is called like that.
    """
    chosen = chosen_jobs(only)
    jobs: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for job in chosen:
        report(job.label)
        jobs[job.label] = run_benchmark(job.case(common), report)
        own = rows_of(job.label, job.rows, jobs[job.label]["runs"])
        for row in own:  # what is measured is seen, whatever becomes of the jobs after it
            memory = f", {row['memory']:.2f} of its memory" if "memory" in row else ""
            report(f"{row['job']}: {row['row']}: {row['time']:.2f} of the plain time{memory}")
        rows += own
    return {"jobs": jobs, "rows": rows}


def chosen_jobs(only: Sequence[str]) -> list[Job]:
    """Jobs whose labels begin with one of some words; () is all.

    Raises:
        InputError: no job is called like that.
    """
    for words in only:
        if not any(job.label.startswith(words) for job in JOBS):
            known = [job.label for job in JOBS]
            raise InputError(f'--only "{words}" begins no job; {nearest(words, known)}')
    return [job for job in JOBS if not only or job.label.startswith(tuple(only))]


def rows_of(label: str, names: Sequence[str], runs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Figures of some runs beside their plain formulations.

    Each has "job", "row", "seconds", "plain_seconds", "time" (ours over the plain one), where memory was measured
    "memory_bytes", "plain_memory_bytes", "memory", and where operations are counted "peak_fraction".
    """
    rows = [_row(label, name, runs[name], runs[plain_of(name)]) for name in names]
    if set(GENERATOR) <= runs.keys():
        ours, plain = (
            {"seconds": sum(runs[prefix + name]["seconds"] for name in GENERATOR)}
            for prefix in ("", "plain ")
        )
        rows.append(_row(label, " and ".join(GENERATOR), ours, plain))
    return rows


def _row(
    label: str, name: str, ours: Mapping[str, Any], plain: Mapping[str, Any]
) -> dict[str, Any]:
    row = {"job": label, "row": name, "seconds": ours["seconds"]}
    row["plain_seconds"] = plain["seconds"]
    row["time"] = ours["seconds"] / plain["seconds"]
    if "memory_bytes" in ours:
        row["memory_bytes"] = ours["memory_bytes"]
        row["plain_memory_bytes"] = plain["memory_bytes"]
        row["memory"] = ours["memory_bytes"] / plain["memory_bytes"]
    if "peak_fraction" in ours:
        row["peak_fraction"] = ours["peak_fraction"]
    return row


def table(results: Mapping[str, Any]) -> str:
    """Results as those of `run_all` as a table for the terminal, and a line on the machine."""
    lines = []
    for row in results["rows"]:
        bytes_ = [row.get(key) for key in ("memory_bytes", "plain_memory_bytes")]
        gib = [None if number is None else number / GIB for number in bytes_]
        percent = None if "peak_fraction" not in row else 100 * row["peak_fraction"]
        times = [row["seconds"], row["plain_seconds"], row["time"]]
        lines.append([f"{row['job']}: {row['row']}", *times, *gib, row.get("memory"), percent])
    heads = ["", "s", "plain s", "time", "GiB", "plain GiB", "memory", "% of peak"]
    formats = ["", ".2f", ".2f", ".2f", ".2f", ".2f", ".2f", ".0f"]
    first = next(iter(results["jobs"].values()))
    peaks = [job["peak_flops"] / 1e9 for job in results["jobs"].values()]
    case = first["case"]
    machine = (
        f"{first['provenance']['device']}; {first['instructions']}, {case['threads']} threads, "
        f"{case['precision']}, {case['device']}; matmul peak {min(peaks):.0f} to {max(peaks):.0f} "
        f"GFLOP/s; linear layers: {first['linear_layers']}; commit {first['provenance']['commit']}"
    )
    note = (
        "time, memory: ours over the plain formulation, in the same run; the plain one has "
        "torch's own allocator setting"
    )
    return "\n".join([machine, "", tabulate(lines, heads, floatfmt=formats), "", note])
