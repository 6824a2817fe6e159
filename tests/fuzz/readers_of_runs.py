"""Formats of what earlier runs have left, and of the tables that runs are made by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipself_seg.mini.writer import WorldSize, make_worlds
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.journal import FILE_NAME, Journal, Written, input_state
from clipself_seg.quickstart.chapters import Table, results_of
from clipself_seg.quickstart.page import plot_losses
from clipself_seg.quickstart.steps import Run
from clipself_seg.tables.page import write_page
from clipself_seg.tables.runs import make_run
from clipself_seg.tables.sections import make_section
from clipself_seg.tables.store import Store
from clipself_seg.tables.table import read_table, read_tables
from clipself_seg.training.metrics import drop_metrics_from
from tests.fuzz.readers import Reader, make_text, partial
from tests.tables.worlds import TABLE, finish

RESULTS = {"results": {"mini_val": {"boxes": {"top1": 1.5, "top5": 2}}}, "provenance": {"seed": 1}}
LINES = "".join(
    json.dumps({"iteration": i, "loss_clipself": 0.5, "lr": 0.1, "time": 1.0}) + "\n"
    for i in range(4)
)


def _repeated() -> Any:
    return make_run("configs/mini/patches.yaml", {}, seed=0)


def _make_results(folder: Path) -> Path:
    finish(Store(folder), _repeated(), RESULTS["results"])
    return folder / _repeated().name / "results.json"


def _make_kept_record(folder: Path) -> Path:
    finish(Store(folder / "runs", folder / "kept"), _repeated(), RESULTS["results"])
    return folder / "kept" / f"{_repeated().name}.json"


def _read_results(path: Path) -> None:
    output = path.parents[1]
    Store(output).record(_repeated())
    run = Run("a", path.parent.name, "a.yaml")
    results_of(Table((run,), lambda rows, style: str(rows)), output).table("html")


def _read_kept_record(path: Path) -> None:
    (table,) = read_tables(["2"])
    runs = {name: [_repeated()] for name in table.shown_runs("mini")}
    write_page(
        [make_section(table, "mini", runs, Store(path.parent, path.parent))], path.parent, "mini"
    )


def _journal(folder: Path, resume: bool) -> tuple[Journal, list[ImageFile]]:
    journal = Journal(folder, {"words": ["cat", "sky"], "threshold": 0.5}, resume)
    return journal, [ImageFile(folder / name, name, name) for name in ("a", "b")]


def _make_journal(folder: Path) -> Path:
    journal, images = _journal(folder, resume=False)
    journal.open({"date": "today"})
    for image in images:
        image.path.write_text("image")
        journal.add(image, input_state(image.path), Written([image.name], {"shares": {"cat": 1.0}}))
    journal.close()
    return folder / FILE_NAME


def _read_journal(path: Path) -> None:
    journal, images = _journal(path.parent, resume=True)
    try:
        journal.open({"date": "today"})
        journal.entries(images)
    finally:
        journal.close()


def _read_metrics(path: Path) -> None:
    plot_losses({"a": path}, path.parent / "loss.png")
    drop_metrics_from(path, 3)


WORLD = WorldSize(train=1, val=1, base=1)


def _make_manifest(folder: Path) -> Path:
    make_worlds(folder, WORLD, processes=1)
    return folder / "mini/manifest.json"


def _read_manifest(path: Path) -> None:
    make_worlds(path.parents[1], WORLD, processes=1)


RUN_READERS = {
    "results_json": Reader(_make_results, _read_results, "json"),
    "kept_record_json": Reader(_make_kept_record, _read_kept_record, "json", weight=0.03),
    "prediction_journal": Reader(_make_journal, _read_journal, "json lines", weight=0.5),
    "table_yaml": Reader(partial(make_text, "9.yaml", TABLE), read_table, "yaml"),
    "metrics_json": Reader(
        partial(make_text, "metrics.json", LINES), _read_metrics, "json lines", weight=0.5
    ),
    "mini_world_manifest": Reader(_make_manifest, _read_manifest, "json", weight=0.03),
}
