"""The commands that the quickstart runs, as a user would type them, two at a time."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from clipself_seg.errors import InputError, ended_by
from lab import ROOT

PROGRAM = ("-m", "clipself_seg")
# What the chapters show: so many images of each world.
WORLDS, IMAGES = ("mini", "mini2"), 4
AT_ONCE = 2  # commands of `call_together`
CHECKPOINTS = "checkpoints"  # folder of a run
# Below the output folder, beside the pages.
RUNS, SHEETS, EXPLORE = "runs", "images", "explore.html"
FULL_RUNS, DRAWN = "runs_full", "worlds"


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of ``clipself-seg train``.

    Attributes:
        title: row of the table.
        folder: name below the output folder.
        config: file below configs/mini.
        options: further words of the command.
        training: whether the run trains (else it evaluates).
        short: what stands in place of `options` unless the quickstart is a full one; () changes nothing.
    """

    title: str
    folder: str
    config: str
    options: tuple[str, ...] = ()
    training: bool = False
    short: tuple[str, ...] = ()

    def shortened(self) -> Run:
        """The same run for whoever waits."""
        return dataclasses.replace(self, options=self.short or self.options)

    def command(self, output: Path) -> list[str]:
        """The words to type after ``python``."""
        mode = "--resume" if self.training else "--eval-only"
        words = [*PROGRAM, "train", "--config-file", f"configs/mini/{self.config}", mode]
        return [*words, *self.options, "OUTPUT_DIR", str(output / self.folder)]

    def is_finished(self, output: Path) -> bool:
        """Whether it has its results, and its checkpoints are gone."""
        folder = output / self.folder
        return (folder / "results.json").exists() and not (folder / CHECKPOINTS).exists()


@dataclasses.dataclass(frozen=True)
class View:
    """Prediction of the first images of a world by the model of a run: one call of ``clipself-seg predict``.

    Attributes:
        title: of the column of images.
        run: gives the configuration and the folder.
        weights: tag; "" is what the run has trained.
        mode: ``--mode`` of panoptic segmentation, part of the folder's name.
    """

    title: str
    run: Run
    weights: str = ""
    mode: str = ""

    def folder(self, output: Path, world: str) -> Path:
        """Folder of the results."""
        names = ("predicted", world, self.mode)
        return output / self.run.folder / "_".join(filter(None, names))

    def name(self, world: str) -> str:
        """Prefix of the lines that the command prints."""
        return ", ".join(filter(None, (self.run.folder, self.mode, world)))

    def command(self, output: Path, worlds: Path, world: str) -> list[str]:
        """The words to type after ``python``."""
        words = [*PROGRAM, "predict", *map(str, first_images(worlds, world))]
        words += ["--config-file", f"configs/mini/{self.run.config}"]
        words += ["--save", "overlays", "labels"]
        if self.mode:
            words += ["--mode", self.mode]
        weights = self.weights or str(output / self.run.folder / "model_final.pth")
        words += ["--model", weights, "--words", world]
        return [*words, "--output", str(self.folder(output, world))]


def first_images(worlds: Path, world: str) -> list[Path]:
    """The images of a world that the chapters show."""
    return sorted((worlds / world / "val").glob("*.jpg"))[:IMAGES]


def call_explore(world: str, output: Path, worlds: Path) -> None:
    """Write EXPLORE, a page to click: the CLIP before and after CLIPSelf on the first images of a world."""
    say("a page to click")
    images = [str(image) for image in first_images(worlds, world)]
    models = ["--model", "original", "clipself-proposals", "--words", world]
    call_together(
        {"explore": [*PROGRAM, "explore", *images, *models, "-o", str(output / EXPLORE)]}, worlds
    )


def say(text: str) -> None:
    """A heading on the terminal."""
    sys.stdout.write(f"\n=== {text}\n")
    sys.stdout.flush()


def run_together(runs: Sequence[Run], output: Path, worlds: Path) -> None:
    """`call_together` of runs but for trainings that are finished; their checkpoints go, which nobody needs then."""
    left = [run for run in runs if not (run.training and run.is_finished(output))]
    call_together({run.folder: run.command(output) for run in left}, worlds)
    for run in left:
        shutil.rmtree(output / run.folder / CHECKPOINTS, ignore_errors=True)


def call_together(commands: Mapping[str, Sequence[str]], worlds: Path) -> None:
    """Run ``python`` with each of some words, `AT_ONCE` at a time, which share the cores.

    Neither starting up nor a small model fills several cores: together they are done earlier.

    Args:
        commands: name -> words; the lines that a command prints begin with its name.
        worlds: folder of the mini worlds.

    Raises:
        InputError: one of them failed; the others came to their end.
    """
    for words in commands.values():
        sys.stdout.write(f"$ python {shlex.join(words)}\n")
    threads = str(max(1, torch.get_num_threads() // AT_ONCE))
    environment = {**os.environ, "CLIPSELF_SEG_MINI": str(worlds)}
    environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    environment["TQDM_MININTERVAL"] = "10"  # seconds: a bar's every state is a line here
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # Ctrl-C, which reaches these commands too, cancels those that wait.
        codes = [*pool.map(lambda name: _follow(name, commands[name], environment), commands)]
    for (name, words), code in zip(commands.items(), codes):
        if code < 0:
            raise InputError(f"this step {ended_by(code)}: python {shlex.join(words)}")
        if code:
            raise InputError(
                f"this step failed: python {shlex.join(words)}; its message is above, after [{name}]"
            )


def _follow(name: str, words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Exit status of a command whose lines are passed on as they come."""
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or ():
            if line.strip():
                sys.stdout.write(f"[{name}] {line}")
                sys.stdout.flush()
    return process.returncode
