"""Formats of what earlier runs have left, and of the tables that runs are made by."""

import json
from pathlib import Path

from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.journal import FILE_NAME, Journal, Written, input_state
from clipself_seg.training.metrics import drop_metrics_from
from lab.mini.writer import WorldSize, make_worlds
from lab.quickstart.chapters import Made, Table, TableRow, results_of
from lab.quickstart.page import plot_losses
from lab.tables.page import write_page
from lab.tables.runs import make_run
from lab.tables.sections import make_section
from lab.tables.store import Store
from lab.tables.table import read_table, read_tables
from tests.fuzz.readers import Reader, text, tree
from tests.lab.tables.worlds import TABLE, finish

RESULTS = {"mini_val": {"boxes": {"top1": 1.5, "top5": 2}}}
REPEATED = make_run("configs/mini/patches.yaml", {}, seed=0)
METRICS = [{"iteration": i, "loss_clipself": 0.5, "lr": 0.1, "time": 1.0} for i in range(4)]
WORLD = WorldSize(train=1, val=1, base=1)


def _write_kept(folder: Path) -> None:
    finish(Store(folder / "runs", folder / "kept"), REPEATED, RESULTS)


def _read_results(path: Path) -> None:
    row = TableRow("a", "patches", training=True)
    made = Made({row: REPEATED}, Store(path.parents[1]), path.parent)
    results_of(Table((row,), lambda rows, style: str(rows)), made, {}).table("html")


def _read_kept(path: Path) -> None:
    (table,) = read_tables(["2"])
    runs = {name: [REPEATED] for name in table.shown_runs("mini")}
    write_page(
        [make_section(table, "mini", runs, Store(path.parent, path.parent))], path.parent, "mini"
    )


def _journal(folder: Path, resume: bool) -> tuple[Journal, list[ImageFile]]:
    journal = Journal(folder, {"words": ["cat", "sky"], "threshold": 0.5}, resume)
    return journal, [ImageFile(folder / name, name, name) for name in ("a", "b")]


def _write_journal(folder: Path) -> None:
    journal, images = _journal(folder, resume=False)
    journal.open({"date": "today"})
    for image in images:
        image.path.write_text("image")
        journal.add(
            image, input_state(image.path), Written([image.name], {"fractions": {"cat": 1.0}})
        )
    journal.close()


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


RUNS = {
    "results_json": Reader(
        tree(f"{REPEATED.name}/results.json", lambda f: finish(Store(f), REPEATED, RESULTS)),
        _read_results,
        "json",
    ),
    "kept_record_json": Reader(
        tree(f"kept/{REPEATED.name}.json", _write_kept), _read_kept, "json", weight=0.3
    ),
    "prediction_journal": Reader(
        tree(FILE_NAME, _write_journal), _read_journal, "json lines", weight=0.5
    ),
    "table_yaml": Reader(text("9.yaml", TABLE), read_table, "yaml"),
    "metrics_json": Reader(
        text("metrics.json", "".join(f"{json.dumps(row)}\n" for row in METRICS)),
        _read_metrics,
        "json lines",
        weight=0.5,
    ),
    "mini_world_manifest": Reader(
        tree("mini/manifest.json", lambda folder: make_worlds(folder, WORLD, processes=1)),
        lambda path: make_worlds(path.parents[1], WORLD, processes=1),
        "json",
        weight=0.03,
    ),
}
