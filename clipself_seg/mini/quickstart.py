"""The whole road on the mini world: worlds, original CLIP, distillation, region recognition, pictures."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipself_seg.errors import InputError
from clipself_seg.evaluation.report import region_table
from clipself_seg.files import atomic_path, write_json
from clipself_seg.mini.gallery import write_gallery
from clipself_seg.mini.writer import WorldSize, make_worlds

ROOT = Path(__file__).resolve().parent.parent.parent
DATASET = "mini_val_panoptic"


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of train_net.py.

    Attributes:
        title: row of the table.
        folder: name below the output folder.
        config: file below configs/mini.
        options: further words of the command.
        training: whether the run distils (else it evaluates).
    """

    title: str
    folder: str
    config: str
    options: tuple[str, ...] = ()
    training: bool = False

    def command(self, output: Path) -> list[str]:
        """The words to type after ``python``."""
        mode = ["--resume"] if self.training else ["--eval-only"]
        words = ["train_net.py", "--config-file", f"configs/mini/{self.config}", *mode]
        return [*words, *self.options, "OUTPUT_DIR", str(output / self.folder)]


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
    """Run every step, print the table, write table and pictures.

    Finished and interrupted runs in `output` are gone on with.

    Args:
        output: folder for the runs, results.json, table.md and index.html.
        worlds: folder of the mini worlds; made if need be.
        fresh: forget earlier runs first.

    Raises:
        InputError: a step failed; its command is named.
    """
    begin = time.monotonic()
    output, worlds = Path(output).absolute(), Path(worlds).absolute()
    if fresh:
        shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    _say("the mini worlds: scenes with panoptic labels, captions and proposals, in COCO's formats")
    make_worlds(worlds, WorldSize())
    rows: dict[str, dict[str, float]] = {}
    facts: dict[str, Any] = {}
    for run in RUNS:
        _say(run.title)
        _call(run.command(output), worlds)
        content = json.loads((output / run.folder / "results.json").read_text())
        (rows[run.title],) = content["results"][DATASET].values()
        facts[run.title] = content["provenance"]
    _say("pictures")
    live = {run.title: output / run.folder / "metrics.json" for run in RUNS if run.training}
    write_gallery(output, worlds / "mini", rows, live)
    _write_table(output, rows, facts, time.monotonic() - begin)


def _say(text: str) -> None:
    sys.stdout.write(f"\n=== {text}\n")
    sys.stdout.flush()


def _call(words: Sequence[str], worlds: Path) -> None:
    environment = {"CLIPSELF_SEG_MINI": str(worlds)}
    sys.stdout.write(f"$ python {shlex.join(words)}\n")
    sys.stdout.flush()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env={**os.environ, **environment})
    if done.returncode:
        raise InputError(f"this step failed: python {shlex.join(words)}; its message is above")


def _write_table(
    output: Path, rows: dict[str, dict[str, float]], facts: dict[str, Any], seconds: float
) -> None:
    write_json(output / "results.json", {"results": rows, "provenance": facts, "seconds": seconds})
    with atomic_path(output / "table.md") as temporary:
        temporary.write_text(region_table(rows, style="github") + "\n")
    table = region_table(rows, first="mini_val, top-1 and top-5 mean accuracy in %")
    sys.stdout.write(
        f"\n{table}\n\n"
        "Boxes, Thing Masks, Stuff Masks: pooled from the dense features. Image Crops: the image "
        "embedding of each\nregion's crop, what a region could be recognised with at best; its first "
        "row is the teacher's.\n"
        f"{seconds / 60:.1f} minutes. Pictures: {output / 'index.html'}\n"
    )
