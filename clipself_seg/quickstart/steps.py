"""The commands that the quickstart runs, as a user would type them."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from clipself_seg.errors import InputError, ended_by
from clipself_seg.provenance import read_results
from clipself_seg.quickstart.tiles import Row

# The folder that the package is in, a checkout or site-packages: a command there runs the same code.
ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = ("-m", "clipself_seg")
# What the chapters show: so many images of each world.
WORLDS, IMAGES = ("mini", "mini2"), 4
AT_ONCE = 2  # commands of `call_together`


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of ``clipself-seg train``.

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
        words = [*PROGRAM, "train", "--config-file", f"configs/mini/{self.config}", *mode]
        return [*words, *self.options, "OUTPUT_DIR", str(output / self.folder)]

    def predicted(self, output: Path, name: str) -> Path:
        """Folder of what it predicts of some images, such as those of a world."""
        return output / self.folder / f"predicted_{name}"

    def results(self, output: Path) -> dict[str, Any]:
        """What the run wrote: "results", "provenance" and "protocol"."""
        return read_results(output / self.folder / "results.json")


@dataclasses.dataclass(frozen=True)
class Chapter:
    """Numbers of a chapter of the quickstart.

    Attributes:
        rows: title of a run -> data set -> results.
        provenances: title of a run -> its provenance.
        table: format of `tabulate` -> the chapter's table.
        images: name of a world -> what the page shows of it.
        protocols: title of a run -> data set -> what its numbers were measured with.
    """

    rows: Mapping[str, Mapping[str, Any]]
    provenances: Mapping[str, Any]
    table: Callable[[str], str]
    images: Mapping[str, Sequence[Row]]
    protocols: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def read_chapter(
    runs: Sequence[Run],
    output: Path,
    table: Callable[..., str],
    prefix: str = "",
    images: Mapping[str, Sequence[Row]] | None = None,
) -> Chapter:
    """What some runs of a chapter wrote.

    Args:
        runs: that are finished.
        output: folder of the runs.
        table: (rows, style=...) -> the table.
        prefix: put before the titles of the provenances.
        images: name of a world -> what the page shows of it.
    """
    contents = {run.title: run.results(output) for run in runs}
    rows = {title: content["results"] for title, content in contents.items()}
    provenances = {prefix + title: content["provenance"] for title, content in contents.items()}
    protocols = {prefix + title: content["protocol"] for title, content in contents.items()}

    def written(style: str) -> str:
        return table(rows, style=style)

    return Chapter(rows, provenances, written, images or {}, protocols)


def first_images(worlds: Path, world: str) -> list[Path]:
    """The images of a world that the chapters show."""
    return sorted((worlds / world / "val").glob("*.jpg"))[:IMAGES]


def prediction(
    config: str,
    weights: str | Path,
    world: str,
    worlds: Path,
    output: Path,
    *options: str,
    vocabulary: str = "",
) -> list[str]:
    """The words to type after ``python`` to segment the first images of a world, or to detect in them.

    Args:
        config: name below configs/mini.
        weights: file or tag.
        world: name of the world.
        worlds: folder of the mini worlds.
        output: folder for the results.
        options: further ones.
        vocabulary: its name; "" is that of the world.
    """
    words = [*PROGRAM, "predict", "--config-file", f"configs/mini/{config}", *options]
    words += [
        "--weights",
        str(weights),
        "--vocabulary",
        vocabulary or world,
        "--output",
        str(output),
        "--input",
    ]
    return words + [str(image) for image in first_images(worlds, world)]


def predict_together(
    runs: Sequence[Run], words: Callable[[Run, str], Sequence[str]], worlds: Path
) -> None:
    """Predict the first images of every world with every run, see `call_together`.

    Args:
        runs: that are finished.
        words: run and name of a world -> what `prediction` gives.
        worlds: folder of the mini worlds.

    Raises:
        InputError: a prediction failed.
    """
    commands = {f"{run.folder}, {world}": words(run, world) for run in runs for world in WORLDS}
    call_together(commands, worlds)


def say(text: str) -> None:
    """A heading on the terminal."""
    sys.stdout.write(f"\n=== {text}\n")
    sys.stdout.flush()


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
        codes = pool.map(lambda name: _follow(name, commands[name], environment), commands)
    for (name, words), code in zip(commands.items(), codes):
        if code < 0:
            raise InputError(f"this step {ended_by(code)}: python {shlex.join(words)}")
        if code:
            raise InputError(
                f"this step failed: python {shlex.join(words)}; its message is above, after [{name}]"
            )


def _follow(name: str, words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Exit status of a command whose lines are passed on as they come."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, **pipes) as process:
        for line in process.stdout or ():
            if line.strip():
                sys.stdout.write(f"[{name}] {line}")
                sys.stdout.flush()
    return process.returncode
