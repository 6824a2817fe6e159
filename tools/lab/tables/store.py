"""Finished runs: in the folder where they ran, or kept as small files beside the page."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clipself_seg.errors import InputError
from clipself_seg.files import read_json, write_json
from clipself_seg.provenance import read_results
from clipself_seg.schema import NUMBER, OBJECT, Schema
from clipself_seg.training.final_evaluation import RESULTS_FILE
from clipself_seg.training.metrics import flatten_numbers
from lab.tables.runs import Run, defaults_name

RUN_FILE = "run.json"
LOG = "log.txt"  # the last line of which a run wrote when it was last at work
Record = dict[str, Any]  # content of a file of this module
KEPT: Schema = {"results": OBJECT, "provenance": OBJECT, "minutes": NUMBER}


class Store:
    """The folders of runs, and which of them are finished.

    Args:
        folder: folder of the runs' folders.
        kept: folders of the records that are kept of finished runs, the first of which takes new ones; none keeps none.
    """

    def __init__(self, folder: Path, *kept: Path) -> None:
        self.folder = folder
        self.kept = kept
        self._known: dict[str, Record] = {}

    def record(self, run: Run) -> Record | None:
        """The record of a finished run: "results", "provenance", "settings", "minutes", and "protocol" if it wrote one.

        None if it is not finished.

        A run is finished if every data set has its numbers, none of them infinite and some of them finite (a
        mean over no classes is none), and no default that it had changed since.
        """
        if run.name not in self._known:
            record = self._from_folder(run) or self._from_kept(run)
            if record is None:
                return None
            self._known[run.name] = record
        return self._known[run.name]

    def has_weights(self, run: Run) -> bool:
        """True if the result of a training is there."""
        folder = self.folder / run.name
        return (folder / run.result_file).is_file() and not self.is_outdated(run)

    def is_outdated(self, run: Run) -> bool:
        """True if the folder of a run is one from before a default changed."""
        folder = self.folder / run.name
        return folder.exists() and not self._same_defaults(
            run, _read(folder / RUN_FILE), self.folder
        )

    def begin(self, run: Run) -> Path:
        """The folder of a run that is to start or to go on; what is outdated in it goes."""
        folder = self.folder / run.name
        if self.is_outdated(run) and (folder / RUN_FILE).exists():
            shutil.rmtree(folder)
        if not (folder / RUN_FILE).exists():
            defaults = defaults_name(run)
            write_json(self.folder / defaults, dict(run.defaults))
            note = {"settings": dict(run.settings), "defaults": defaults, "minutes": 0.0}
            write_json(folder / RUN_FILE, note)
        write_json(folder / RUN_FILE, _counted(folder) | {"began": time.time()})
        return folder

    def end(self, run: Run, seconds: float) -> None:
        """Add processor time to a run's record, and keep a copy of it if it is finished.

        Args:
            run: a run that ended.
            seconds: processor time.
        """
        path = self.folder / run.name / RUN_FILE
        note = read_json(path)
        note.pop("began", None)
        # The defaults stay those under which it began: there may be new keys since.
        write_json(path, note | {"minutes": note["minutes"] + seconds / 60})
        self._known.pop(run.name, None)
        self.keep([run])

    def keep(self, runs: Iterable[Run]) -> None:
        """Write the record of each finished run that is not kept yet."""
        for run in runs if self.kept else ():
            path = self.kept[0] / f"{run.name}.json"
            record = self._from_folder(run)
            if record is not None and _read(path) != record:
                # First, because a record without its defaults is none.
                name = record["defaults"]
                write_json(self.kept[0] / name, read_json(self.folder / name))
                write_json(path, record)

    def _from_folder(self, run: Run) -> Record | None:
        folder = self.folder / run.name
        note = _read(folder / RUN_FILE)
        if note is None or not self._same_defaults(run, note, self.folder):
            return None
        try:
            written = read_results(folder / RESULTS_FILE)
        except InputError:
            return None
        dropped = ("config", "command")
        provenance = {k: v for k, v in written["provenance"].items() if k not in dropped}
        results = written["results"] | _of_mixtures(written)
        record = {"results": results, "provenance": provenance, **_counted(folder)}
        if written["protocol"]:  # runs of before there were protocols have none
            record["protocol"] = written["protocol"]
        return record if _is_complete(record) else None

    def _from_kept(self, run: Run) -> Record | None:
        for folder in self.kept:
            record = _read(folder / f"{run.name}.json", KEPT)
            if record and _is_complete(record) and self._same_defaults(run, record, folder):
                return record
        return None

    def _same_defaults(self, run: Run, note: Record | None, folder: Path) -> bool:
        """True if no default that decided a run was another one then; keys that are new do not count."""
        if note is None:
            return False
        then = _read(folder / str(note.get("defaults")))
        return then is not None and all(
            then[key] == run.defaults[key]
            for key in then.keys() & run.defaults.keys() - run.settings["config"].keys()
        )


def _of_mixtures(written: Record) -> dict[str, dict[str, float]]:
    """Numbers of mixtures with the start, of each data set as of one of its own, such as "mini_val_sem_seg@0.75"."""
    return {
        f"{name}@{row['fraction']:g}": {k: v for k, v in split.items() if isinstance(v, float)}
        for row in written.get("mixing", {}).get("rows", ())
        for name, split in row["data sets"].items()
    }


def _counted(folder: Path) -> Record:
    """The note of a run, with the time of a part whose end nobody saw: until its log's last line, one thread's."""
    note: Record = read_json(folder / RUN_FILE)
    log, began = folder / LOG, note.pop("began", None)
    if began is not None and log.exists():
        note["minutes"] += max(0.0, log.stat().st_mtime - began) / 60
    return note


def _read(path: Path, schema: Schema = OBJECT) -> Record | None:
    """Content of a file of this module; None if it is missing, or was not written here."""
    try:
        record: Record = read_json(path, schema=schema)
    except InputError:
        return None
    return record


def _is_complete(record: Record) -> bool:
    if "not evaluated" in record["provenance"]:
        return False
    numbers = dict(flatten_numbers(record["results"])).values()
    return any(map(math.isfinite, numbers)) and not any(map(math.isinf, numbers))
