"""The first hour with a GPU: what was known without one is tested and measured, and written down.

`first_hour.yaml` has the steps. Each is a command of this project in a process of its own, so that one that fails takes
nothing with it: its error is written down, and the hour goes on. What is done stands in the JSON, behind which a second
call goes on; what failed is tried again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from clipself_seg.errors import InputError, after_interrupt
from clipself_seg.files import atomic_path, read_json, write_json
from clipself_seg.provenance import provenance

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT = 1200  # seconds of a step
# Figures of a command that are kept, by the tables of the page that show them; the first decides which rows there are.
TABLES = {
    "Tests": ("passed", "tolerance_used", "most_used_by"),
    "Loss of the first step": ("loss", "loss_off", "loss_may_be_off"),
    "Time and memory": ("seconds", "first_seconds", "GiB"),
}
KEPT = ("runs", "failed", *TABLES["Tests"], "loss")


def steps(folder: Path, device: str, small: bool, threads: int) -> Iterator[dict[str, Any]]:
    """The steps of first_hour.yaml in their order.

    Args:
        folder: of the files that they write.
        device: "cpu" or "cuda".
        small: whether everything is as small as can be, to see that it works.
        threads: of torch.

    Yields:
        Of each "label", "command" (words as for a shell), "output" (a folder) and "file" (JSON that it writes there);
        of a training "like" (label of another one, whose first step is the same) and "tolerance".
    """
    plan = yaml.safe_load((HERE / "first_hour.yaml").read_text())
    values = {"python": sys.executable, "device": device, "threads": threads, "folder": folder}
    changes = [plan[name] for name, so in (("cpu", device == "cpu"), ("small", small)) if so]
    for change in [plan, *changes]:
        values |= {key: value.format_map(values) for key, value in change["values"].items()}
        plan["lists"] |= change["lists"]
    smaller = plan["small"]["configs"] if small else {}
    for step in plan["steps"]:
        lists = [[(kind, *item) for item in plan["lists"][kind].items()] for kind in step["each"]]
        for chosen in itertools.product(*lists):
            own: dict[str, Any] = {**values, "label": ", ".join(name for _, name, _ in chosen)}
            for kind, name, known in chosen:
                own |= {kind: name, **known}
            own["config"] = smaller.get(own.get("config"), own.get("config"))
            own["output"] = folder / re.sub("[^A-Za-z0-9]+", "_", own["label"])
            own["file"] = own["output"] / "figures.json"
            own["like"] = step.get("like", "").format_map(own)
            yield own | {"command": step["command"].format_map(own)}


def first_hour(path: Path, how: Mapping[str, Any], report: Callable[[str], None]) -> str:
    """Take all steps that are not done, and write the JSON and the page behind each.

    Args:
        path: of the JSON; the page lies beside it (.md), and the steps' files in a folder of its name.
        how: "device", "small" and "threads", see `steps`, and "only", first words of labels; () is all.
        report: called with the progress.

    Returns:
        The page.

    Raises:
        InputError: the JSON is of another machine, device or size.
    """
    path = path.absolute()
    hour = {key: how[key] for key in ("device", "small")} | {"provenance": provenance(seed=0)}
    known = read_json(path) if path.exists() else hour | {"steps": {}}
    if _origin(known) != _origin(hour):
        raise InputError(f"{path} is of {_origin(known)}, this is {_origin(hour)}: move it away")
    taken = hour["steps"] = known["steps"]
    planned = list(steps(path.with_suffix(""), how["device"], how["small"], how["threads"]))
    for number, step in enumerate(planned, 1):
        label = step["label"]
        done = label in taken and "error" not in taken[label]
        if done or not label.startswith(tuple(how["only"] or [""])):
            continue
        report(f"step {number} of {len(planned)}: {label}")
        with after_interrupt("the same command goes on"):
            taken[label] = take(step, taken.get(step["like"], {}))
        taken[label]["commit"] = hour["provenance"]["commit"]  # the next call may be of another one
        report(taken[label].get("error") or f"done in {taken[label]['took']:.0f} s")
        write_json(path, hour)
        with atomic_path(path.with_suffix(".md")) as temporary:
            temporary.write_text(page(hour))
    return page(hour)


def _origin(hour: Mapping[str, Any]) -> str:
    return f"{hour['provenance']['device']}, {hour['device']}{', small' * hour['small']}"


def take(step: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Run a command to its end.

    Args:
        step: of `steps`.
        like: figures of a training whose first step is the same; {} for none.

    Returns:
        The figures in the file of the step, "took" (seconds), "loss_off" and "loss_may_be_off" (how far its first loss
        is, and may be, from the other, as a fraction) and, where it failed, "error".
    """
    folder, start = Path(step["file"]).parent, time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = [str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]
    how: dict[str, Any] = {"cwd": ROOT, "stderr": subprocess.STDOUT, "start_new_session": True}
    how["env"] = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    log = Path(f"{folder}.log")
    with log.open("w") as written:
        process = subprocess.Popen(shlex.split(step["command"]), stdout=written, **how)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LIMIT)
        finally:  # whatever it has started too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
    said = read_json(step["file"]) if step["file"].exists() else {}
    figures = {key: said[key] for key in KEPT if key in said}
    figures["took"] = time.perf_counter() - start
    if status:
        lines = log.read_text(errors="replace").splitlines()
        last = next(filter(str.strip, reversed(lines)), "")
        figures["error"] = f"status {status}: {last[:300]}"
    if "loss" in figures and "loss" in like:
        figures["loss_off"] = abs(figures["loss"] / like["loss"] - 1)
        figures["loss_may_be_off"] = step["tolerance"]
    return figures


def page(hour: Mapping[str, Any]) -> str:
    """The figures of an hour in Markdown."""
    taken, known = hour["steps"], hour["provenance"]
    shown = dict(taken)
    for label, figures in taken.items():
        for name, run in figures.get("runs", {}).items():
            shown[f"{label}: {name}"] = run | {"GiB": run.get("memory_bytes", 0) / 2**30 or None}
    tables: dict[str, Sequence[Any]] = {
        title: [
            ("", *keys),
            *((row, *map(of.get, keys)) for row, of in shown.items() if keys[0] in of),
        ]
        for title, keys in TABLES.items()
    }
    waits = [(row, *wait) for row, of in shown.items() for wait in of.get("waits", {}).items()]
    failed = [(row, of["error"]) for row, of in taken.items() if "error" in of]
    failed += [pair for of in taken.values() for pair in of.get("failed", {}).items()]
    tables |= {"Waits": [("", "place", "times"), *waits], "Failed": [("", "error"), *failed]}
    commits = ", ".join(sorted({of["commit"] for of in taken.values()}))
    lines = [f"# First hour: {_origin(hour)}", ""]
    lines += [f"torch {known['torch']}, {known['date']}, commit {commits}"]
    for title, rows in tables.items():
        lines += ["", f"## {title}", "", tabulate(rows, "firstrow", "pipe", floatfmt=".4g")]
    return "\n".join(lines) + "\n"
