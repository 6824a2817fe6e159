"""Runs the benchmarks of all tasks, each beside its plain formulation and in bfloat16, and prints one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from bench.case import Case
from bench.report import CHECKPOINTED, LOWER, plain_of, run_benchmark
from clipself_seg.errors import InputError, nearest
from clipself_seg.files import read_json, write_json
from clipself_seg.provenance import provenance
from clipself_seg.schema import OBJECT

EVA, CAT_SEG_CLIP, ODISE_CLIP = "EVA02-B-16", "ViT-B-16-quickgelu", "ViT-L-14-336-quickgelu"
GIB = 2**30
# Seconds of the official code, by rows of the table, and those of ours beside it, on another machine.
OFFICIAL = Path(__file__).resolve().parents[2] / "docs/measured/official.json"
# Columns of the table, and how their numbers are written.
COLUMNS = {
    "job": "",
    "official (ours), s": "",
    "plain, s": ".2f",
    "ours, s": ".2f",
    "ours / plain": ".2f",
    "bfloat16, s": ".2f",
    "bfloat16 / ours": ".2f",
    "plain, GiB": ".1f",
    "ours, GiB": ".1f",
    "% of peak": ".0f",
}


class Job(NamedTuple):
    """One benchmark and the rows of the table that it gives.

    Attributes:
        label: in the table.
        given: fields of its `Case`, beside those that all jobs have in common.
        rows: names of its runs that the table has; no others are measured.
    """

    label: str
    given: Mapping[str, Any]
    rows: tuple[str, ...]


def _semseg(classes: int) -> dict[str, Any]:
    return {"task": "semseg", "model": CAT_SEG_CLIP, "classes": classes}


JOBS = (
    Job("dense features, ViT-B/16, 1024 px", {"task": "dense", "model": "ViT-B-16"}, ("dense",)),
    Job(
        f"CLIPSelf, {EVA}, 1024 px, an image",
        {"task": "distill", "model": EVA},
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
        ("generator", "masked attention", "dense pooling", "merge"),
    ),
    Job(
        f"F-ViT {EVA}, OV-LVIS, 1024 px",
        {"task": "detection", "model": EVA, "classes": 1203},
        ("image", "behind the tower"),
    ),
)


def run_all(
    common: Mapping[str, Any], only: Sequence[str], path: Path | None, report: Callable[[str], None]
) -> dict[str, Any]:
    """Measure all jobs, one after the other.

    Args:
        common: fields of every job's `Case`: "repeats", "threads", "device".
        only: labels of jobs, or the first words of some; () is all.
        path: file that is written behind each job. A job that it has of the same commit, processor and `common` is
            not measured again, and other jobs in it stay.
        report: called with the progress.

    Returns:
        By label what `run_benchmark` returns.

    Raises:
        InputError: no job is called like that; the file is none of jobs.
    """
    chosen = chosen_jobs(only)
    known = read_json(path, "file of jobs", {"jobs": OBJECT}) if path and path.exists() else {}
    jobs: dict[str, Any] = known.get("jobs", {})
    for job in chosen:
        if job.label in jobs and _is_of_here(jobs[job.label], common):
            continue
        report(job.label)
        case = Case(only=job.rows, **job.given, **common)
        jobs[job.label] = run_benchmark(case, report, lower=True)
        if path:
            write_json(path, {"jobs": jobs})
    return jobs


def _is_of_here(results: Mapping[str, Any], common: Mapping[str, Any]) -> bool:
    """True if results are of this commit and processor, measured in the same way."""
    here, there = provenance(device=common["device"]), results["provenance"]
    same = all(there[key] == here[key] for key in ("commit", "device", "torch"))
    return same and all(results["case"][key] == value for key, value in common.items())


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


def rows_of(label: str, runs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table, `COLUMNS` of each run of ours; None for what is not measured."""
    official = read_json(OFFICIAL)["jobs"]
    rows = []
    for name, ours in runs.items():
        if name.startswith(("plain ", LOWER)):
            continue
        row, plain, lower = f"{label}: {name}", runs[plain_of(name)], runs.get(f"{LOWER} {name}")
        cells = [row, official.get(row), plain["seconds"], ours["seconds"]]
        cells.append(ours["seconds"] / plain["seconds"])
        cells += [lower["seconds"], lower["seconds"] / ours["seconds"]] if lower else [None, None]
        cells += [run["memory_bytes"] / GIB for run in (plain, ours)]
        cells.append(100 * ours["peak_fraction"] if "peak_fraction" in ours else None)
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def table(jobs: Mapping[str, Any]) -> str:
    """The machine, the table of all jobs in Markdown, and a line on its columns.

    Args:
        jobs: as `run_all` returns them.
    """
    rows = [row for label, results in jobs.items() for row in rows_of(label, results["runs"])]
    shown = tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=(*COLUMNS.values(),))
    first, peaks = [*jobs.values()][0], [results["peak_flops"] / 1e9 for results in jobs.values()]
    origins = [results["provenance"] for results in jobs.values()]
    processors, commits = (
        ", ".join(sorted({origin[key] for origin in origins})) for key in ("device", "commit")
    )
    case = first["case"]
    machine = (
        f"{processors}: {first['products']}; {case['device']}, {case['threads']} threads, "
        f"{case['precision']}; peak {min(peaks):.0f} to {max(peaks):.0f} GFLOP/s; commit {commits}"
    )
    return f"{machine}\n\n{shown}\n\n{read_json(OFFICIAL)['note']}"
