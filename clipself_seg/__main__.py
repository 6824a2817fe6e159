"""Runs every command by one name: ``clipself-seg COMMAND`` or ``python -m clipself_seg COMMAND``.

The bodies are in `clipself_seg.commands`, one module each; train_net.py and tools/ of a checkout call the same ones.
"""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

from clipself_seg import __version__
from clipself_seg.errors import nearest

PROGRAM = "clipself-seg"


class Command(NamedTuple):
    """One command of the command line.

    Attributes:
        module: name of the module in `clipself_seg.commands`.
        summary: line about the command in the list of commands.
        words: words that are put before those that are typed.
        function: name of the module's function that takes the command line from `sys.argv`.
    """

    module: str
    summary: str
    words: tuple[str, ...] = ()
    function: str = "main"


COMMANDS = {
    "train": Command("train", "distil a CLIP, train CAT-Seg, a mask generator or F-ViT"),
    "eval": Command("train", "evaluate any of them (train --eval-only)", ("--eval-only",)),
    "predict": Command("predict", "segment images, or detect in them, with your own class names"),
    "dense-maps": Command("dense_maps", "draw what dense features see"),
    "explore": Command("explore", "a page of heat maps to click, in one file"),
    "serve": Command(
        "serve", "the same page for images and words of now, from a server of your own"
    ),
    "data check": Command(
        "check_datasets", "which data sets are complete, and what mends the others"
    ),
    "data prepare": Command("prepare", "labels in training layout from archives", (), "by_name"),
    "data mini-world": Command("make_mini_world", "draw the generated worlds"),
    "data region-text": Command("prepare_region_text", "give boxes nouns of captions"),
    "data proposals": Command("write_proposals", "write the proposals of a trained RPN"),
    "train-rpn": Command("train_rpn", "train an RPN on base classes and write its proposals"),
    "convert": Command("convert_clip", "write a CLIP checkpoint in another published layout"),
    "export": Command("export", "write ONNX of a CLIP's dense features and texts, checked"),
    "generator-outputs": Command("write_generator_outputs", "keep a mask generator's outputs"),
    "panoptic-quality": Command("panoptic_quality", "PQ of a prediction in COCO's format"),
    "data similarity": Command("write_similarity", "how alike the classes of a vocabulary are"),
    "compare-regions": Command(
        "compare_regions", "region recognition of several models in one table and picture"
    ),
    "reproduce": Command("reproduce", "the paper's tables by one command"),
    "repeat-seeds": Command("repeat_seeds", "mean and spread over several seeds"),
    "demo": Command("demo", "see heat maps and segments of the shipped weights, in a minute"),
    "quickstart": Command("quickstart", "see CLIPSelf's claims on a generated world"),
    "mini-clip": Command("train_mini_clip", "train the CLIP of the generated worlds from scratch"),
    "doctor": Command(
        "doctor", "what is installed, what is missing, and the command that brings it"
    ),
    "install-detectron2": Command("install_detectron2", "bring Detectron2, which models need"),
}


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [options]",
            "",
            "Dense CLIP features that recognise regions, and what is built on them.",
            "",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help has the options of a command.",
            "A configuration is a file, or the name of one that comes with the package, such as",
            "--config-file semseg/catseg_token_vitb16.yaml.",
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


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status, or 2 for a name that is none."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] in (["-h"], ["--help"]):
        sys.stdout.write(usage())
        return 0
    if words == ["--version"]:
        sys.stdout.write(f"{__version__}\n")
        return 0
    name, rest = split(words)
    if not name:
        sys.stderr.write(_refusal(words))
        return 2
    command = COMMANDS[name]
    # As if typed: argparse takes the program's name from here, and results.json the command.
    sys.argv = [f"{PROGRAM} {name}", *command.words, *rest]
    module = importlib.import_module(f"clipself_seg.commands.{command.module}")
    return int(getattr(module, command.function)() or 0)


def _refusal(words: list[str]) -> str:
    """What is said of words that name no command."""
    if not words:
        return usage()
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if group:
        return (
            f"error: {words[0]} is followed by one of: {', '.join(n.split()[1] for n in group)}\n"
        )
    return f'error: no command "{words[0]}"; {nearest(words[0], COMMANDS)} ({PROGRAM} --help)\n'


if __name__ == "__main__":
    sys.exit(main())
