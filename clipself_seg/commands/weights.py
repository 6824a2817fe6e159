"""List, fetch and check official weights, with their licences and published numbers.

    clipself-seg weights                      # all names by task
    clipself-seg weights --task semantic --may-ship yes
    clipself-seg weights get catseg-base      # fetch before it is needed
    clipself-seg weights check my_folder      # which files are the published ones
    clipself-seg weights verify openai-vitb16 # published outputs of the weights, computed anew

A name stands wherever a path of weights does, such as --model catseg-base. "by hand" means that the publisher's page
needs a browser: get says which page, and where to put the file. "may ship" reads the licence that the publisher states:
ask means that it leaves the question open. verify fetches the weights and the images that it needs, and prints each
number beside the published one. Exit status: 0, 1 if a file of check is not the published one or a number of verify
differs, 2 if a name is unknown or a file cannot be fetched.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from clipself_seg.commands.options import CommandLine, command, flag, task, value
from clipself_seg.errors import InputError, known

if TYPE_CHECKING:
    from clipself_seg.checkpoints.zoo import Entry

ACTIONS = ("list", "get", "check", "verify")
ANSWERS = ("yes", "ask", "no")  # of `Entry.may_ship`
CLIP = "CLIP alone"
PART = "part of a model"
MASKS = "masks for --masks"
WIDTH = 100  # letters of a line
HEADINGS = ("name", "size", "here", "ship?", "licence", "published")
# Task -> what has to be known of a CLIP that does it without training, in place of its numbers.
NAMES_MASKS = "names the masks of eomt; no number of both is known"
WITHOUT_TRAINING = {"panoptic": NAMES_MASKS, "detection": NAMES_MASKS}


def _options(parser: CommandLine) -> None:
    parser.add_argument("action", nargs="?", default="list", choices=ACTIONS, help="action (list)")
    names = "names to get or verify, or the folder to check (the one that get fills)"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    task(parser, "task to list: semantic, panoptic or detection")
    value(parser, "--may-ship", "list those that a product may contain, or not", choices=ANSWERS)
    flag(parser, "--all", "verify all weights that are on this machine")
    value(parser, "--image-folder", "of verify's images (they are fetched)", kind=Path)


@command(_options, __doc__)
def main(args: argparse.Namespace) -> int:
    """Lists, fetches, checks or verifies weights."""
    if args.action == "get":
        return _get(args.names)
    if args.action == "verify":
        from clipself_seg.commands import verify

        return verify.main(args.names, args.all, args.image_folder)
    return _check(args.names) if args.action == "check" else _list(args.task, args.may_ship)


def _list(task: str | None, may_ship: str | None) -> int:
    from clipself_seg.checkpoints.locate import weights_folder
    from clipself_seg.checkpoints.zoo import SHIPPED_MODELS, shipped_tags, zoo
    from clipself_seg.choice import TASKS, require_task

    require_task(task)
    rows: dict[str, list[list[str]]] = {name: [] for name in (*TASKS, CLIP, MASKS, PART)}
    for entry in zoo().values():
        if may_ship in (None, entry.may_ship):
            for kind, how in _kinds(entry).items():
                rows[kind].append(_row(entry, how))
    for kind, body in rows.items():
        if body and task in (None, kind):
            sys.stdout.write(f"{kind}\n{_table(body)}\n\n")
    own = f"With the package: {', '.join([*shipped_tags(), *SHIPPED_MODELS])}"
    sys.stdout.write(f"{textwrap.fill(own, WIDTH)}\n")
    sys.stdout.write("* of the repository; of the weights nothing is said. More: docs/models.md\n")
    sys.stdout.write(f"Files are fetched into {weights_folder()}\n")
    return 0


def _kinds(entry: Entry) -> dict[str, str]:
    """Headings that an entry stands under -> what stands there in place of its numbers."""
    from clipself_seg.choice import OF_CLIP, find_model
    from clipself_seg.config.weight_checks import MASKS as OF_MASKS

    if entry.tasks:
        return {task: WITHOUT_TRAINING.get(task, "") for task in entry.tasks}
    if entry.key == "MODEL.WEIGHTS":
        return {find_model(entry.name).task: ""}
    return {{OF_CLIP: CLIP, OF_MASKS: MASKS}.get(entry.key, PART): ""}


def _row(entry: Entry, how: str) -> list[str]:
    from clipself_seg.checkpoints.locate import present_file
    from clipself_seg.checkpoints.zoo import same_weights

    present = any(map(present_file, same_weights(entry)))
    here = "yes" if present else "no" if entry.addresses else "by hand"
    licence = entry.licence.replace(" (the repository's)", "*").replace(" License", "")
    shipped = entry.may_ship
    return [
        entry.name,
        entry.how_large,
        here,
        shipped,
        licence.partition(",")[0],
        how or entry.published,
    ]


def _table(rows: list[list[str]]) -> str:
    """A table of `WIDTH` letters at most: the last column has what the others leave, or is left out."""
    from tabulate import tabulate

    padded = [heading + "  " for heading in HEADINGS]  # as tabulate has them
    widths = [max(map(len, column)) for column in zip(padded, *rows)][:-1]
    room = WIDTH - sum(widths) - 2 * len(widths)
    if room < len(padded[-1]):
        return tabulate([row[:-1] for row in rows], HEADINGS[:-1], "simple")
    cut = [[*cells, textwrap.shorten(text, room, placeholder=" ...")] for *cells, text in rows]
    return tabulate(cut, HEADINGS, "simple")


def _get(names: list[str]) -> int:
    from clipself_seg.checkpoints.locate import fetch
    from clipself_seg.checkpoints.zoo import zoo

    if not names:
        raise InputError("weights get needs a name: clipself-seg weights lists them")
    for name in names:
        known(name, zoo(), "official weights")
    for name in names:
        sys.stdout.write(f"{name}: {fetch(zoo()[name])} ({zoo()[name].licence})\n")
    return 0


def _check(names: list[str]) -> int:
    from clipself_seg.checkpoints.locate import check_entry, present_file, weights_folder
    from clipself_seg.checkpoints.zoo import zoo

    official = {entry.file: entry for entry in zoo().values()}
    files = []
    for folder in map(Path, names) if names else [weights_folder()]:
        if not folder.is_dir():
            raise InputError(f"no folder {folder}: name one with files of weights")
        paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
        files += [(path, official.get(path.name)) for path in paths]
    if not names:  # what came from the hub lies below it
        pairs = [(present_file(entry), entry) for entry in zoo().values()]
        files += [(path, one) for path, one in pairs if path and path.parent != weights_folder()]
    bad = 0
    for path, entry in files:
        said = "not the file of an official name"
        if entry is not None:
            try:
                check_entry(path, entry)
                stated = entry.size or entry.sha256
                said = entry.name + ("" if stated else ", of which no size is published")
            except InputError as error:
                bad, said = 1, f"error: {error}"
        sys.stdout.write(f"{path.name}: {said}\n")
    return bad
