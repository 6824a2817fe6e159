"""The quickstart: worlds, regions, the chapters, their tables and page."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from clipself_seg.evaluation.protocol import protocol_lines
from clipself_seg.evaluation.regions.report import region_table
from clipself_seg.explore.demo import WORLD
from clipself_seg.files import alone_in, remove_leftovers, write_json, write_text
from lab.mini.writer import WorldSize, make_worlds
from lab.quickstart.chapters import (
    DETECTION,
    PANOPTIC,
    SEMANTIC,
    Results,
    Table,
    results_of,
    show_chapter,
)
from lab.quickstart.page import write_images_and_page
from lab.quickstart.steps import (
    DRAWN,
    FULL_RUNS,
    RUNS,
    SHEETS,
    Run,
    call_explore,
    run_together,
    say,
)

DATASET = "mini_val_panoptic"
CHAPTERS = (SEMANTIC, PANOPTIC, DETECTION)
# Of a quickstart that is not a full one. Scenes of one number are the same in every size.
FEW_SCENES = WorldSize(train=200, val=100, base=400)


def _evaluation(title: str, tag: str) -> Run:
    return Run(title, tag, "regions.yaml", ("MODEL.CLIP.WEIGHTS", tag))


SHORT = ("SOLVER.MAX_ITER", "100")
REGIONS = (
    _evaluation("original CLIP", "mini"),
    Run("+ CLIPSelf, patches, live", "patches_live", "patches.yaml", training=True, short=SHORT),
    Run("+ CLIPSelf, proposals, live", "proposals_live", "proposals.yaml", (), True, SHORT),
    _evaluation("+ CLIPSelf, patches, shipped", "mini-clipself"),
    _evaluation("+ CLIPSelf, proposals, shipped", "mini-clipself-proposals"),
)
# Numbers of the one input size of the one data set, and not of several as in a chapter.
REGIONS_TABLE = Table(
    REGIONS, region_table, numbers=lambda results: next(iter(results[DATASET].values()))
)
REGIONS_NOTE = (
    "Top-1/top-5 mean accuracy on mini_val in %.\n"
    "Boxes, Thing Masks, Stuff Masks: averages of the dense features in a region. Image Crops: the "
    "image embedding\nof its crop; the first row is what CLIPSelf distils from."
)


def run_quickstart(output: str | Path, fresh: bool = False, full: bool = False) -> None:
    """Run every step, print the table, write table and images.

    Finished and interrupted runs in `output` are gone on with; those of a full quickstart are apart from the others.

    Args:
        output: folder for index.html and explore.html, table.md and results.json, SHEETS, DRAWN, and RUNS or FULL_RUNS.
        fresh: forget earlier runs first.
        full: longer trainings, and twice the scenes.

    Raises:
        InputError: a step failed; its command is named. Or another quickstart is at work there.
    """
    output = Path(output).absolute()
    with alone_in(output):
        for folder in (output, output / SHEETS):
            remove_leftovers(folder)
        if fresh:
            for path in output.iterdir():  # not the folder, which is locked
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _run_chapters(output, full)


def _run_chapters(output: Path, full: bool) -> None:
    begin = time.monotonic()
    runs, worlds = output / (FULL_RUNS if full else RUNS), output / DRAWN
    say("the mini worlds: scenes with panoptic labels, captions and proposals, in COCO's formats")
    make_worlds(worlds, WorldSize() if full else FEW_SCENES)
    say("region recognition: the original CLIP, CLIPs distilled just now, and the shipped ones")
    every = [*REGIONS]
    for chapter in CHAPTERS:
        say(chapter.heading)
        every += chapter.runs
    # Those that take long begin.
    every.sort(key=lambda run: not run.training)
    run_together(every if full else [run.shortened() for run in every], runs, worlds)
    regions = results_of(REGIONS_TABLE, runs)
    results: dict[str, Results] = {}
    for chapter in CHAPTERS:
        results |= show_chapter(chapter, runs, output / SHEETS, worlds)
    call_explore(WORLD, output, worlds)
    say("images")
    live = {run.title: runs / run.folder / "metrics.json" for run in REGIONS if run.training}
    write_images_and_page(output, regions, live, results)
    seconds = time.monotonic() - begin
    _write_files(output, regions, results, seconds)
    sys.stdout.write(_report(regions, results))
    sys.stdout.write(
        f"{seconds / 60:.1f} minutes. How the numbers were measured: table.md\nPage: {output / 'index.html'}\n"
    )


def _write_files(
    output: Path, regions: Results, results: Mapping[str, Results], seconds: float
) -> None:
    """Write results.json and table.md."""
    provenances: dict[str, object] = {}
    protocols: dict[str, Mapping[str, Mapping[str, object]]] = {}
    for table in (regions, *results.values()):
        provenances |= table.provenances
        protocols |= table.protocols
    rows = {"results": regions.rows} | {name: table.rows for name, table in results.items()}
    about = {"seconds": seconds, "provenance": provenances, "protocol": protocols}
    write_json(output / "results.json", rows | about)
    tables = [table.table("github") for table in (regions, *results.values())]
    lines = (line for protocol in protocols.values() for line in protocol_lines(protocol))
    write_text(output / "table.md", "\n\n".join([*tables, *dict.fromkeys(lines)]) + "\n")


def _report(regions: Results, results: Mapping[str, Results]) -> str:
    """The tables for the terminal, each with what its numbers are."""
    style = "terminal" if sys.stdout.isatty() else "simple"
    paragraphs = [regions.table(style), REGIONS_NOTE]
    for chapter in CHAPTERS:
        paragraphs += [results[name].table(style) for name in chapter.tables]
        paragraphs.append(chapter.note)
    return "\n" + "\n\n".join(paragraphs) + "\n"
