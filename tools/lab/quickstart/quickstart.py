"""The quickstart: worlds, the chapters' runs, their tables and page."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from clipself_seg.commands.demo import write_explore
from clipself_seg.data.datasets.table import MINI
from clipself_seg.evaluation.measuring_protocol import protocol_lines
from clipself_seg.explore.demo import WORLD
from clipself_seg.files import alone_in, remove_leftovers, write_json, write_text
from clipself_seg.visualization.overlays import write_tiles
from lab.mini.writer import WorldSize, make_worlds
from lab.quickstart.chapters import CHAPTERS, LIVE, Made, Results, first_images, results_of
from lab.quickstart.page import SHEETS, write_images_and_page
from lab.tables.execution import AT_ONCE, make_all, say
from lab.tables.store import Store

# Below the output folder, beside the pages.
RUNS, DRAWN = "runs", "worlds"
# Of a quickstart that is not a full one. Scenes of one number are the same in every size.
FEW_SCENES = WorldSize(train=200, val=100, base=400)
MOST_AT_ONCE = 4  # runs, each of which takes a core and up to 2 GB


def run_quickstart(output: str | Path, full: bool = False) -> None:
    """Run every step, print the tables, write them and images.

    Finished and interrupted runs in `output` are gone on with, and those of a full quickstart are others.

    Args:
        output: folder for index.html and explore.html, table.md and results.json, SHEETS, DRAWN and RUNS.
        full: longer trainings, and twice the scenes.

    Raises:
        InputError: a step failed, which is named. Or another quickstart is at work there.
    """
    output = Path(output).absolute()
    with alone_in(output):
        for folder in (output, output / SHEETS):
            remove_leftovers(folder)
        _run_chapters(output, full)


def _run_chapters(output: Path, full: bool) -> None:
    begin = time.monotonic()
    worlds = output / DRAWN
    _head("the mini worlds: scenes with panoptic labels, captions and proposals, in COCO's formats")
    make_worlds(worlds, WorldSize() if full else FEW_SCENES)
    os.environ[MINI.variable] = str(worlds)  # where runs read them
    for chapter in CHAPTERS:
        _head(chapter.heading)
    runs = {row: row.run(full) for chapter in CHAPTERS for row in chapter.rows}
    made = Made(runs, Store(output / RUNS), worlds)
    # Those that take long begin.
    every = sorted(runs.values(), key=lambda run: run.evaluate)
    make_all(every, made.store, at_once=max(AT_ONCE, min(torch.get_num_threads(), MOST_AT_ONCE)))
    results: dict[str, Results] = {}
    _head("images")
    for chapter in CHAPTERS:
        images = chapter.draw(made)
        for world, rows in images.items():
            write_tiles(rows, output / SHEETS / f"{chapter.name}_{world}.png")
        results |= {name: results_of(of, made, images) for name, of in chapter.tables.items()}
    write_explore(first_images(worlds, WORLD), output)
    live = {row.title: made.file(row, "metrics.json") for row in LIVE}
    write_images_and_page(output, live, results)
    seconds = time.monotonic() - begin
    _write_files(output, results, seconds)
    say(_report(results))
    say(f"{seconds / 60:.1f} minutes. How the numbers were measured: table.md")
    say(f"Page: {output / 'index.html'}")


def _head(text: str) -> None:
    say(f"\n=== {text}")


def _write_files(output: Path, results: Mapping[str, Results], seconds: float) -> None:
    """Write results.json and table.md."""
    provenances: dict[str, object] = {}
    protocols: dict[str, Mapping[str, Mapping[str, object]]] = {}
    for table in results.values():
        provenances |= table.provenances
        protocols |= table.protocols
    about = {"seconds": seconds, "provenance": provenances, "protocol": protocols}
    write_json(output / "results.json", {name: of.rows for name, of in results.items()} | about)
    tables = [table.table("github") for table in results.values()]
    lines = (line for protocol in protocols.values() for line in protocol_lines(protocol))
    write_text(output / "table.md", "\n\n".join([*tables, *dict.fromkeys(lines)]) + "\n")


def _report(results: Mapping[str, Results]) -> str:
    """The tables for the terminal, each with what its numbers are."""
    style = "terminal" if sys.stdout.isatty() else "simple"
    paragraphs = list[str]()
    for chapter in CHAPTERS:
        paragraphs += [results[name].table(style) for name in chapter.tables]
        paragraphs.append(chapter.note)
    return "\n" + "\n\n".join(paragraphs) + "\n"
