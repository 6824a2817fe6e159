"""The quickstart: worlds, regions, the chapters, their tables and page; and the demo, which trains nothing."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from clipself_seg.checkpoints.zoo import MINI_CLIP
from clipself_seg.clip import load_clip
from clipself_seg.evaluation.protocol import protocol_lines
from clipself_seg.evaluation.regions.report import region_table
from clipself_seg.files import alone_in, atomic_path, remove_leftovers, write_json
from clipself_seg.mini.writer import WorldSize, make_worlds
from clipself_seg.pages import write_page
from clipself_seg.quickstart.chapters import (
    DETECTION,
    PANOPTIC,
    SEMANTIC,
    Results,
    Table,
    results_of,
    run_chapter,
    show_images,
)
from clipself_seg.quickstart.heat_maps import SHOWN, ask, heat_sheet
from clipself_seg.quickstart.page import write_images_and_page
from clipself_seg.quickstart.steps import (
    IMAGES,
    PROGRAM,
    Run,
    call_together,
    first_images,
    run_together,
    say,
)
from clipself_seg.visualization.overlays import save_jpeg

DATASET = "mini_val_panoptic"
CHAPTERS = (SEMANTIC, PANOPTIC, DETECTION)


def _evaluation(title: str, tag: str) -> Run:
    return Run(title, tag, "regions.yaml", ("MODEL.CLIP.WEIGHTS", tag))


REGIONS = (
    _evaluation("original CLIP", "mini"),
    Run("+ CLIPSelf, patches, live", "patches_live", "patches.yaml", training=True),
    Run("+ CLIPSelf, proposals, live", "proposals_live", "proposals.yaml", training=True),
    _evaluation("+ CLIPSelf, patches, shipped", "mini-clipself"),
    _evaluation("+ CLIPSelf, proposals, shipped", "mini-clipself-proposals"),
)
# Numbers of the one input size of the one data set, and not of several as in a chapter.
REGIONS_TABLE = Table(
    REGIONS, region_table, numbers=lambda results: next(iter(results[DATASET].values()))
)
REGIONS_NOTE = (
    "Top-1/top-5 mean accuracy on mini_val in %.\n"
    "Boxes, Thing Masks, Stuff Masks: pooled from the dense features. Image Crops: the image "
    "embedding of each\nregion's crop, what a region could be recognised with at best; its first "
    "row is the teacher's."
)


def run_quickstart(output: str | Path, worlds: str | Path, fresh: bool = False) -> None:
    """Run every step, print the table, write table and images.

    Finished and interrupted runs in `output` are gone on with.

    Args:
        output: folder for the runs, results.json, table.md and index.html.
        worlds: folder of the mini worlds; made if need be.
        fresh: forget earlier runs first.

    Raises:
        InputError: a step failed; its command is named. Or another quickstart is at work there.
    """
    output, worlds = Path(output).absolute(), Path(worlds).absolute()
    with alone_in(output):
        remove_leftovers(output)
        if fresh:
            for path in output.iterdir():  # not the folder, which is locked
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _run_chapters(output, worlds)


def _run_chapters(output: Path, worlds: Path) -> None:
    begin = time.monotonic()
    say("the mini worlds: scenes with panoptic labels, captions and proposals, in COCO's formats")
    make_worlds(worlds, WorldSize())
    say("region recognition: CLIP as it is, after distillations just now, and after longer ones")
    # Those that take long begin.
    run_together(sorted(REGIONS, key=lambda run: not run.training), output, worlds)
    regions = results_of(REGIONS_TABLE, output)
    results: dict[str, Results] = {}
    for chapter in CHAPTERS:
        results |= run_chapter(chapter, output, worlds)
    say("images")
    live = {run.title: output / run.folder / "metrics.json" for run in REGIONS if run.training}
    write_images_and_page(output, worlds / "mini", regions, live, results)
    seconds = time.monotonic() - begin
    _write_files(output, regions, results, seconds)
    sys.stdout.write(_report(regions, results))
    sys.stdout.write(
        f"{seconds / 60:.1f} minutes. Images: {output / 'index.html'}; protocols of the numbers: table.md\n"
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
    with atomic_path(output / "table.md") as temporary:
        temporary.write_text("\n\n".join([*tables, *dict.fromkeys(lines)]) + "\n")


def _report(regions: Results, results: Mapping[str, Results]) -> str:
    """The tables for the terminal, each with what its numbers are."""
    style = "terminal" if sys.stdout.isatty() else "simple"
    paragraphs = [regions.table(style), REGIONS_NOTE]
    for chapter in CHAPTERS:
        paragraphs += [results[name].table(style) for name in chapter.tables]
        paragraphs.append(chapter.note)
    return "\n" + "\n\n".join(paragraphs) + "\n"


DEMO_WORLD = "mini"
DEMO_EXPLORE = "explore.html"
# Only the scenes that are shown, and those that a world needs.
DEMO_SIZE = WorldSize(train=1, val=IMAGES, base=1)


def run_demo(output: Path) -> Path:
    """Write `heat_maps.jpg`, `panoptic_mini.png`, `explore.html` and `index.html`, the page that has them.

    Args:
        output: folder for them, the scenes and what is predicted of them.

    Returns:
        The page.

    Raises:
        InputError: a step failed; its command is named. Or another demo is at work there.
    """
    with alone_in(output):
        say("heat maps: where a CLIP finds a word, as it is and after CLIPSelf")
        questions = ask({title: load_clip(MINI_CLIP, tag) for title, tag in SHOWN.items()})
        save_jpeg(heat_sheet(questions), output / "heat_maps.jpg")
        say("segments of generated scenes, named by both CLIPs")
        worlds = output / "worlds"
        make_worlds(worlds, DEMO_SIZE)
        segments = show_images(PANOPTIC, output, worlds, (DEMO_WORLD,))[DEMO_WORLD]
        say("a page to click")
        images = [str(image) for image in first_images(worlds, DEMO_WORLD)]
        models = ["--models", "original", "clipself-proposals", "--words", DEMO_WORLD]
        words = [*PROGRAM, "explore", *images, *models, "-o", str(output / DEMO_EXPLORE)]
        call_together({"explore": words}, worlds)
        path = output / "index.html"
        write_page(path, "demo.html", questions=questions, segments=segments, explore=DEMO_EXPLORE)
    return path
