"""Runs the quickstart on the mini world: worlds, original CLIP, distillation, region recognition, images."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipself_seg.evaluation.protocol import protocol_lines
from clipself_seg.evaluation.regions.report import region_table
from clipself_seg.files import alone_in, atomic_path, remove_leftovers, write_json
from clipself_seg.mini.writer import WorldSize, make_worlds
from clipself_seg.quickstart.detection_chapter import detection_chapter
from clipself_seg.quickstart.page import write_images_and_page
from clipself_seg.quickstart.panoptic_chapter import panoptic_chapter
from clipself_seg.quickstart.semantic_chapter import semantic_chapter
from clipself_seg.quickstart.steps import Chapter, Run, call_together, say

DATASET = "mini_val_panoptic"


def _shipped(title: str, tag: str) -> Run:
    return Run(title, tag, "regions.yaml", ("MODEL.CLIP.WEIGHTS", tag))


ORIGINAL = _shipped("original CLIP", "mini")
RUNS = (
    ORIGINAL,
    Run("+ CLIPSelf, patches, live", "patches_live", "patches.yaml", training=True),
    Run("+ CLIPSelf, proposals, live", "proposals_live", "proposals.yaml", training=True),
    _shipped("+ CLIPSelf, patches, shipped", "mini-clipself"),
    _shipped("+ CLIPSelf, proposals, shipped", "mini-clipself-proposals"),
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
    rows: dict[str, dict[str, float]] = {}
    provenances: dict[str, Any] = {}
    protocols: dict[str, Any] = {}
    say("region recognition: CLIP as it is, after distillations just now, and after longer ones")
    # Those that take long begin.
    runs = sorted(RUNS, key=lambda run: not run.training)
    call_together({run.folder: run.command(output) for run in runs}, worlds)
    for run in RUNS:
        content = run.results(output)
        (rows[run.title],) = content["results"][DATASET].values()
        provenances[run.title] = content["provenance"]
        protocols[run.title] = content["protocol"]
    chapters = {"semantic": semantic_chapter(output, worlds)}
    panoptic = panoptic_chapter(output, worlds)
    chapters |= {f"panoptic, {name}": chapter for name, chapter in panoptic.items()}
    chapters["detection"] = detection_chapter(output, worlds)
    say("images")
    live = {run.title: output / run.folder / "metrics.json" for run in RUNS if run.training}
    write_images_and_page(output, worlds / "mini", rows, live, chapters)
    _write_table(output, rows, provenances, protocols, chapters, time.monotonic() - begin)


def _write_table(
    output: Path,
    rows: dict[str, dict[str, float]],
    provenances: dict[str, Any],
    protocols: dict[str, Any],
    chapters: Mapping[str, Chapter],
    seconds: float,
) -> None:
    content = {"results": rows} | {name: chapter.rows for name, chapter in chapters.items()}
    provenances = provenances | {
        k: v for chapter in chapters.values() for k, v in chapter.provenances.items()
    }
    for chapter in chapters.values():
        protocols = protocols | dict(chapter.protocols)
    about = {"seconds": seconds, "provenance": provenances, "protocol": protocols}
    write_json(output / "results.json", content | about)
    with atomic_path(output / "table.md") as temporary:
        tables = [region_table(rows, style="github")]
        tables += [chapter.table("github") for chapter in chapters.values()]
        lines = (line for one in protocols.values() for line in protocol_lines(one))
        temporary.write_text("\n\n".join([*tables, *dict.fromkeys(lines)]) + "\n")
    style = "terminal" if sys.stdout.isatty() else "simple"
    semantic, *panoptic, detection = (chapter.table(style) for chapter in chapters.values())
    panoptic_tables = "\n\n".join(panoptic)
    table = region_table(rows, style=style)
    sys.stdout.write(
        f"\n{table}\n\n"
        "Top-1/top-5 mean accuracy on mini_val in %.\n"
        "Boxes, Thing Masks, Stuff Masks: pooled from the dense features. Image Crops: the image "
        "embedding of each\nregion's crop, what a region could be recognised with at best; its first "
        "row is the teacher's.\n\n"
        f"{semantic}\n\n"
        "Mean IoU in % of two CLIPs without any training, and of CAT-Seg on them, trained just now on the seen classes "
        "of\nmini. mini2 is a world of its own, with other layouts, textures and words.\n\n"
        f"{panoptic_tables}\n\n"
        "Panoptic quality in % of two mask generators, one trained just now, one for longer, on images "
        "of the seen classes\nof mini. Their masks are named by CLIP's dense features alone, by the "
        "generator alone, or by both (fused).\n\n"
        f"{detection}\n\n"
        "AP50 of boxes of F-ViT in %, trained on boxes of the seen (base) things of mini alone; novel ones "
        "were never\nnamed in its training.\n"
        f"{seconds / 60:.1f} minutes. Images: {output / 'index.html'}; protocols of the numbers: table.md\n"
    )
