"""Runs every command by one name: ``clipself-seg COMMAND`` or ``python -m clipself_seg COMMAND``.

The bodies are in `clipself_seg.commands`; train_net.py of a checkout calls the same one as `train`.
"""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable
from typing import NamedTuple

from clipself_seg import __version__
from clipself_seg.errors import nearest, report_input_errors
from clipself_seg.imports import HELP, OPTION

PROGRAM = "clipself-seg"
WIDTH = 100  # of the list of commands


class Entry(NamedTuple):
    """One command of the command line.

    Attributes:
        place: module in `clipself_seg.commands` and its function, which takes the command line from `sys.argv`.
        summary: line about the command in a list of commands.
        words: words that are put before those that are typed.
    """

    place: str
    summary: str
    words: tuple[str, ...] = ()


COMMANDS = {
    "predict": Entry(
        "predict.main", "segment images, or detect in them, with your own class names"
    ),
    "train": Entry("train.main", "distil a CLIP, train CAT-Seg, a mask generator or F-ViT"),
    "eval": Entry("train.main", "evaluate these models (train --eval-only)", ("--eval-only",)),
    "explore": Entry("explore.explore", "write an interactive page of heat maps, in one file"),
    "serve": Entry("serve.main", "serve a page where visitors give images and words"),
    "dense-maps": Entry("explore.dense_maps", "draw clusters and heat maps of dense features"),
    "demo": Entry("demo.demo", "see heat maps and segments of the shipped models, in a minute"),
    "weights": Entry("weights.main", "list, fetch and check official weights"),
    "compare": Entry("compare.compare", "put finished runs of any task in one table"),
    "export": Entry("export.export", "write ONNX of a CLIP's dense features and texts, checked"),
    "doctor": Entry(
        "doctor.doctor", "show what is installed and what is missing, and how to install it"
    ),
    "install-detectron2": Entry("doctor.install_detectron2", "install Detectron2 (models need it)"),
    "tools scenes": Entry("demo.scenes", "copy the generated scenes of the package to a folder"),
    "tools convert": Entry("export.convert", "write a CLIP checkpoint in another published layout"),
    "tools panoptic-quality": Entry(
        "panoptic_quality.main", "PQ of a prediction in COCO's format, by panopticapi"
    ),
}
# Words that a second one follows, and what their commands are about.
GROUPS = {"tools": "rarely needed"}
# Commands that need the repository -> where they are in a clone of it.
MOVED = {
    "quickstart": "tools/quickstart.py",
    "reproduce": "tools/reproduce.py",
    "benchmark": "tools/benchmark.py",
    "data check": "tools/check_datasets.py",
    "data prepare": "tools/prepare.py",
    "data mini-world": "tools/mini.py world",
    "data region-text": "tools/precompute.py region-text",
    "data proposals": "tools/precompute.py proposals",
    "tools train-rpn": "tools/precompute.py train-rpn",
    "tools repeat-seeds": "tools/repeat_seeds.py",
    "tools mini-clip": "tools/mini.py clip",
}


def commands_of(group: str) -> dict[str, Entry]:
    """The commands of one of `GROUPS` by their second words."""
    prefix = f"{group} "
    return {n.removeprefix(prefix): entry for n, entry in COMMANDS.items() if n.startswith(prefix)}


def usage(group: str = "") -> str:
    """The list of commands, or of those of one of `GROUPS`."""
    if group:
        rows = {f"{group} {name}": entry.summary for name, entry in commands_of(group).items()}
    else:
        rows = {name: entry.summary for name, entry in COMMANDS.items() if " " not in name}
        rows |= {name: f"{text}: {', '.join(commands_of(name))}" for name, text in GROUPS.items()}
    width = max(map(len, rows))
    indent = " " * (width + 4)
    return "\n".join(
        [
            f"usage: {PROGRAM} {group or 'COMMAND'} {'COMMAND ' if group else ''}[options]",
            "",
            "Dense CLIP features that recognise regions, and open-vocabulary models on them.",
            "",
            *(
                textwrap.fill(f"  {name:{width}}  {text}", WIDTH, subsequent_indent=indent)
                for name, text in rows.items()
            ),
            "",
            f"{PROGRAM} COMMAND --help has the options of a command.",
            "A configuration is a file, or the name of one that comes with the package, such as",
            "--config-file semseg/catseg_token+openai_vitb16.yaml.",
            f"{OPTION} MODULE_OR_FILE, with any command: {HELP}.",
            "",
        ]
    )


def split(words: list[str]) -> tuple[str, list[str]]:
    """Splits words into the name of a command, of one or two words, and the rest; the name of none is ""."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name, words[count:]
    return "", words


def body(entry: Entry) -> Callable[[], int]:
    """What a command calls, which takes the command line from ``sys.argv``."""
    module, function = entry.place.split(".")
    return getattr(importlib.import_module(f"clipself_seg.commands.{module}"), function)


@report_input_errors
def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status, or 2 for a name that is none."""
    words = sys.argv[1:] if arguments is None else arguments
    group = words[0] if words and words[0] in GROUPS else ""
    if words[bool(group) :][:1] in (["-h"], ["--help"]):
        sys.stdout.write(usage(group))
        return 0
    if words == ["--version"]:
        sys.stdout.write(f"{__version__}\n")
        return 0
    name, rest = split(words)
    if not name:
        sys.stderr.write(_refusal(words))
        return 2
    entry = COMMANDS[name]
    # As if typed: argparse takes the program's name from here, and results.json the command.
    sys.argv = [f"{PROGRAM} {name}", *entry.words, *rest]
    return body(entry)()


def _refusal(words: list[str]) -> str:
    """What is said of words that name no command."""
    if not words:
        return usage()
    for name in (words[0], " ".join(words[:2])):
        if name in MOVED:
            return f"error: {name} needs a clone of the repository: python {MOVED[name]} there\n"
    if words[0] in GROUPS:
        return f"error: {words[0]} is followed by one of: {', '.join(commands_of(words[0]))}\n"
    return f'error: no command "{words[0]}"; {nearest(words[0], COMMANDS)} ({PROGRAM} --help)\n'


if __name__ == "__main__":
    sys.exit(main())
