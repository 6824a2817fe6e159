"""The first hour with a GPU: what was known without one is tested and measured, and written down.

`first_hour.yaml` has the steps. Each is a command of this project in a process of its own, so that one that fails takes
nothing with it: its error is written down, and the hour goes on. What is done stands in the JSON, behind which a second
call goes on; what failed is tried again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tabulate import tabulate
from torch.utils.collect_env import get_nvidia_driver_version
from torch.utils.collect_env import run as run_command

from clipself_seg.errors import GOES_ON, InputError, after_interrupt, ended_by
from clipself_seg.files import read_json, write_json, write_text
from clipself_seg.provenance import provenance

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT = 1200  # seconds of a step
# Tables of the page, and their columns: figure -> heading; the first decides which rows there are.
COLUMNS = {
    "tests": {"passed": "passed", "skipped": "skipped"}
    | {"tolerance_used": "used of a tolerance", "most_used_by": "by"},
    "losses": {"loss": "loss", "loss_off": "off", "loss_may_be_off": "allowed"},
    "times": {"seconds": "s", "first_seconds": "first, s", "GiB": "GiB"},
}
KEPT = ("runs", "failed", "loss", *COLUMNS["tests"])
ERROR = re.compile(
    r"(?:\[rank\d+\]: )?(error: .*|(?!Exception ignored)[\w.]*(?:Error|Exception)\b.*)"
)


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
            if own["label"] in step.get("without", ()):
                continue
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
        InputError: the JSON is of another machine, device or size; there is no GPU.
    """
    if how["device"] == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "torch sees no GPU here (clipself-seg doctor says more): --device cpu takes the steps without"
        )
    path = path.absolute()
    planned = list(steps(path.with_suffix(""), how["device"], how["small"], how["threads"]))
    hour: dict[str, Any] = {"device": how["device"], "small": how["small"]}
    hour |= {"machine": machine(), "provenance": provenance(seed=0)}
    hour |= {"planned": len(planned), "steps": {}}
    known = read_json(path) if path.exists() else hour
    if _origin(known) != _origin(hour):
        raise InputError(f"{path} is of {_origin(known)}, this is {_origin(hour)}: move it away")
    taken = hour["steps"] = known["steps"]
    for number, step in enumerate(planned, 1):
        label = step["label"]
        done = label in taken and "error" not in taken[label]
        if done or not label.startswith(tuple(how["only"] or [""])):
            continue
        report(f"step {number} of {len(planned)}: {label}")
        with after_interrupt(GOES_ON):
            taken[label] = take(step, taken.get(step["like"], {}))
        # The next call may be of another commit, and the page of another folder.
        taken[label]["commit"] = hour["provenance"]["commit"]
        command = step["command"].replace(sys.executable, "python")
        taken[label]["command"] = command.replace(str(path.parent), path.parent.name)
        report(taken[label].get("error") or f"done in {taken[label]['took']:.0f} s")
        write_json(path, hour)
        write_text(path.with_suffix(".md"), page(hour))
    return page(hour)


def machine() -> str:
    """Names the software, the cores and the GPUs, on which the figures depend."""
    software = (
        f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores"
    )
    if not torch.cuda.is_available():
        return software
    seen = torch.cuda.get_device_properties()
    return (
        f"{software}, {torch.cuda.device_count()} GPU(s) of {seen.total_memory / 2**30:.1f} GiB, compute capability "
        f"{seen.major}.{seen.minor}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, driver "
        f"{get_nvidia_driver_version(run_command)}"
    )


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
    log, late = Path(f"{folder}.log"), ""
    with log.open("w") as written:
        process = subprocess.Popen(shlex.split(step["command"]), stdout=written, **how)
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            late = f"not done after {LIMIT / 60:g} minutes"
        finally:  # whatever it has started too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
    said = read_json(step["file"]) if step["file"].exists() else {}
    figures = {key: said[key] for key in KEPT if key in said}
    figures["took"] = time.perf_counter() - start
    if status:
        ended = late or (ended_by(status) if status < 0 else f"status {status}")
        figures["error"] = f"{ended}: {reason(log.read_text(errors='replace'))}"
    if "loss" in figures and "loss" in like:
        figures["loss_off"] = abs(figures["loss"] / like["loss"] - 1)
        figures["loss_may_be_off"] = step["tolerance"]
    return figures


def reason(log: str) -> str:
    """The line of a log that says why the command failed: its last error, or else its last line."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [match[1] for match in map(ERROR.match, lines) if match]
    return (errors or lines or [""])[-1][:300]


def page(hour: Mapping[str, Any]) -> str:
    """The figures of an hour in Markdown: first_hour.md, filled in."""
    taken = hour["steps"]
    shown = dict(taken)
    for label, figures in taken.items():
        for name, run in figures.get("runs", {}).items():
            shown[f"{label}: {name}"] = run | {"GiB": run.get("memory_bytes", 0) / 2**30 or None}
    waits = [(row, *wait) for row, of in shown.items() for wait in of.get("waits", {}).items()]
    commands = [f"    # {label}\n    {of['command']}" for label, of in taken.items()]
    said = {
        "origin": _origin(hour),
        "commits": ", ".join(sorted({of["commit"] for of in taken.values()})),
        "taken": len(taken),
        "left": hour["planned"] - len(taken),
        "failed": _table(_failures(taken), "error"),
        "waits": _table(waits, "place", "times"),
        "commands": "\n".join(commands),
    }
    for name, columns in COLUMNS.items():
        first = next(iter(columns))
        rows = [(row, *map(of.get, columns)) for row, of in shown.items() if first in of]
        said[name] = _table(rows, *columns.values())
    return (HERE / "first_hour.md").read_text().format(**hour, **said)


def _failures(taken: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Steps that failed, losses that are off, and tests that failed, those of one error together."""
    failed = [(label, of["error"]) for label, of in taken.items() if "error" in of]
    failed += [
        (f"{label}: loss", f"{of['loss_off']:.2g} off, {of['loss_may_be_off']:g} allowed")
        for label, of in taken.items()
        if of.get("loss_off", 0) > of.get("loss_may_be_off", 0)
    ]
    tests = defaultdict[str, list[str]](list)
    for of in taken.values():
        for test, error in of.get("failed", {}).items():
            tests[error].append(test)
    more = {error: f" and {len(own) - 1} more" * (len(own) > 1) for error, own in tests.items()}
    return [*failed, *((own[0] + more[error], error) for error, own in tests.items())]


def _table(rows: Sequence[Sequence[Any]], *headings: str) -> str:
    cells = [[v.replace("|", "\\|") if isinstance(v, str) else v for v in row] for row in rows]
    return tabulate(cells, ["", *headings], "pipe", floatfmt=".4g") if rows else ""
