"""Origin of a number: commit, versions, seed, configuration and weights."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipself_seg import __version__
from clipself_seg.files import read_json, write_json
from clipself_seg.schema import OBJECT, Schema, check


def git_commit() -> str:
    """Commit of this checkout, with ``+dirty`` for uncommitted changes; ``unknown`` outside git.

    What runs of the paper's tables write beside their pages while others still run is no change.
    """
    root = Path(__file__).resolve().parent.parent
    # Git would look above it, and find a project that has this package in its environment.
    if not (root / ".git").exists():
        return "unknown"
    asked = "status --porcelain=v2 --branch --untracked-files=no -- . :!docs/tables".split()
    try:
        words = ["git", "--no-optional-locks", "-C", str(root), *asked]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    lines = (
        done.stdout.splitlines()
    )  # "# branch.oid COMMIT", further heads, and a line for each change
    changed = any(not line.startswith("#") for line in lines)
    return lines[0].split()[-1][:12] + "+dirty" * changed


def cpu_info() -> str:
    """Linux's description of the processor, with family and flags; "" on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""


def _processor() -> str:
    """Name of the CPU; `platform` has none on most Linux systems."""
    lines = cpu_info().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def provenance(
    *,
    config: str | None = None,
    seed: int | None = None,
    weights_hash: str | None = None,
    device: str = "cuda",
    **more: Any,
) -> dict[str, Any]:
    """Metadata to store beside a result.

    Args:
        config: the configuration as YAML text, or the command line of a tool.
        seed: the seed of the run.
        weights_hash: `VisionLanguageBackbone.weights_hash()` of the evaluated model.
        device: that computed, as MODEL.DEVICE names it; a GPU that is not here counts as the CPU.
        **more: further JSON-serialisable metadata.
    """
    import torch

    program, *words = sys.argv
    if os.path.exists(program):  # else it is two words, such as clipself-seg predict
        program = shlex.quote(program)
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    return {
        "version": __version__,
        "commit": git_commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": f"{program} {shlex.join(words)}".rstrip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "seed": seed,
        "weights_hash": weights_hash,
        "config": config,
        **more,
    }


def write_results(
    path: str | os.PathLike[str],
    results: Mapping[str, Any],
    provenance: Mapping[str, Any],
    protocol: Mapping[str, Any] | None = None,
    **more: Any,
) -> None:
    """Writes `results.json`, atomically: the numbers, where they come from, and what they were measured with.

    Args:
        path: file to write.
        results: JSON-serialisable.
        provenance: as `clipself_seg.provenance.provenance` returns it.
        protocol: name of a data set -> its protocol (`evaluation.measuring_protocol`), where there is one.
        **more: further JSON-serialisable content, by its key.
    """
    content = {"results": dict(results), "provenance": dict(provenance)}
    write_json(path, content | ({} if protocol is None else {"protocol": dict(protocol)}) | more)


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `write_results` wrote: "results" and "provenance", an object each, and "protocol", {} in older files.

    Raises:
        InputError: the file is missing or broken, or is none of that form.
    """
    content: dict[str, Any] = read_json(path, "file of results")
    parts: Schema = {"results": OBJECT, "provenance": OBJECT}
    check(content, parts, path, "remove it, and evaluate again")
    return content | {"protocol": protocols_of(content)}


def protocols_of(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of a data set -> its protocol, of what a file of results holds; {} where it says none."""
    given = content.get("protocol")
    protocols = given.items() if isinstance(given, dict) else ()
    return {name: parts for name, parts in protocols if isinstance(parts, dict)}
