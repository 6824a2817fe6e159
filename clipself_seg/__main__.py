"""Runs every command by one name: ``clipself-seg COMMAND`` or ``python -m clipself_seg COMMAND``.

The bodies are in `clipself_seg.commands`; train_net.py of a checkout calls the same one as `train`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import NamedTuple

try:
    from clipself_seg import __version__
    from clipself_seg.errors import known, report_input_errors
    from clipself_seg.imports import HELP, OPTION
except KeyboardInterrupt:  # before `report_input_errors` can say it
    sys.exit(130)

PROGRAM = "clipself-seg"


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
    "weights": Entry("weights.main", "list, fetch, check and verify official weights"),
    "compare": Entry("compare.compare", "put finished runs of any task in one table"),
    "export": Entry("export.export", "write ONNX of a CLIP's dense features and texts, checked"),
    "doctor": Entry(
        "doctor.doctor", "show what is installed and what is missing, and how to install it"
    ),
    "install-detectron2": Entry("doctor.install_detectron2", "install Detectron2 (models need it)"),
    "scenes": Entry("demo.scenes", "copy the generated scenes of the package to a folder"),
    "convert": Entry("export.convert", "write a CLIP checkpoint in another published layout"),
    "panoptic-quality": Entry("panoptic_quality.main", "PQ of a prediction in COCO's format"),
}


def usage() -> str:
    """The help text: the list of commands, and what they share."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {entry.summary}" for name, entry in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [options]",
            "",
            "Name anything in an image: give words, get a label map, segments or boxes (CLIPSelf in Detectron2).",
            "",
            *rows,
            "",
            f"{PROGRAM} COMMAND --help has the options of a command.",
            "A configuration is a file, or the name of one that comes with the package, such as",
            "--config-file semseg/catseg_token+openai_vitb16.yaml.",
            f"{OPTION} MODULE_OR_FILE, with any command: {HELP}.",
            "",
        ]
    )


def body(entry: Entry) -> Callable[[], int]:
    """The function of a command, which takes the command line from ``sys.argv``."""
    module, function = entry.place.split(".")
    return getattr(importlib.import_module(f"clipself_seg.commands.{module}"), function)


@report_input_errors
def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit status, or 2 for a name that is none."""
    words = sys.argv[1:] if arguments is None else arguments
    if words == ["--version"]:
        sys.stdout.write(f"{__version__}\n")
        return 0
    if not words or words[0] in ("-h", "--help"):
        (sys.stdout if words else sys.stderr).write(usage())
        return 0 if words else 2
    name, *rest = words
    entry = COMMANDS[known(name, COMMANDS, "command", hint=f" ({PROGRAM} --help)")]
    # As if typed: argparse takes the program's name from here, and results.json the command.
    sys.argv = [f"{PROGRAM} {name}", *entry.words, *rest]
    return body(entry)()


if __name__ == "__main__":
    sys.exit(main())
