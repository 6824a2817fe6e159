"""List, fetch and check official weights, with their licences and published numbers.

    clipself-seg weights                      # all names by task
    clipself-seg weights --task semantic
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
from pathlib import Path

from clipself_seg.commands.options import CommandLine, command, flag, task, value
from clipself_seg.errors import InputError, known

ACTIONS = ("list", "get", "check", "verify")
CLIP = "CLIP alone"
PART = "part of a model"
WIDTH = 60  # of a cell


def _options(parser: CommandLine) -> None:
    parser.add_argument("action", nargs="?", default="list", choices=ACTIONS, help="action (list)")
    names = "names to get or verify, or the folder to check (the one that get fills)"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    task(parser, "task to list: semantic, panoptic or detection")
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
    return _check(args.names) if args.action == "check" else _list(args.task)


def _list(task: str | None) -> int:
    from tabulate import tabulate

    from clipself_seg.checkpoints.locate import present_file, weights_folder
    from clipself_seg.checkpoints.zoo import SHIPPED_MODELS, shipped_tags, zoo
    from clipself_seg.choice import TASKS, find_model, require_task

    require_task(task)
    rows: dict[str, list[list[str]]] = {name: [] for name in (*TASKS, CLIP, PART)}
    for entry in zoo().values():
        kind = CLIP if entry.key == "MODEL.CLIP.WEIGHTS" else PART
        kind = find_model(entry.name).task if entry.key == "MODEL.WEIGHTS" else kind
        size = f"{entry.size / 1e6:,.0f} MB" if entry.size else "-"
        here = "yes" if present_file(entry) else "no" if entry.addresses else "by hand"
        cells = [_cut(entry.licence), entry.may_ship, size, here, _cut(entry.published)]
        rows[kind].append([entry.name, *cells])
    headings = ["name", "licence", "may ship", "size", "here", "published"]
    for kind, body in rows.items():
        if task in (None, kind):
            sys.stdout.write(f"{kind}\n{tabulate(body, headings, 'simple')}\n\n")
    sys.stdout.write(f"With the package: {', '.join([*shipped_tags(), *SHIPPED_MODELS])}\n")
    sys.stdout.write(f"Files are fetched into {weights_folder()}\n")
    return 0


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


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
