"""Takes the mark of uncommitted changes from kept records whose code is shown to be that of their commit."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from clipself_seg.files import read_json, write_json
from lab import ROOT
from lab.tables.runs import Run

# Without the tables themselves: of them a run has its inputs, and its name has their hash.
CODE = ("clipself_seg", "configs", "tools", "train_net.py")
TABLES = (":!configs/tables", ":!tools/lab/tables/*.yaml")


def unmark(runs: Iterable[Run], folder: Path) -> Iterator[str]:
    """Takes the mark from records, and says of each one whether it is shown, or else the core-minutes of its run.

    A record has the name of a run of today's tables, so its inputs (configuration, weights and data) are today's. Its
    code is that of its commit if no later commit, up to the one that keeps the record, changes any.

    Args:
        runs: of today's tables, with a record.
        folder: of the records, in this repository.
    """
    for run in runs:
        path = folder / f"{run.name}.json"
        record = read_json(path)
        origin = record["provenance"]
        commit, mark, _ = origin["commit"].partition("+dirty")
        if not mark:
            continue
        later = ("--ancestry-path", f"{commit}..HEAD", "-S", origin["date"], "--", str(path))
        keeper = [commit, *_commits(*later)][-1]
        since = ("--no-merges", "--ancestry-path", f"{commit}..{keeper}", "--", *CODE, *TABLES)
        if keeper == commit or _commits(*since):
            yield f"not shown, {record['minutes']:.1f} core-minutes: {run.name} of {commit}{mark}"
            continue
        shown = f"no commit from it to {keeper[:12]}, which keeps this, changes {', '.join(CODE)}"
        record["provenance"] = origin | {"commit": commit, "unmarked": shown}
        write_json(path, record)
        yield f"shown: {run.name} of {commit}: {shown}"


def _commits(*words: str) -> list[str]:
    """The commits that git's log has with some options, the latest first."""
    command = ["git", "-C", str(ROOT), "log", "--format=%H", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
