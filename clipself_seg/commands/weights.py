"""List, fetch and check official weights, with their licences and published numbers.

    clipself-seg weights                      # all names by task
    clipself-seg weights --task semantic --may-ship yes
    clipself-seg weights get catseg-base      # fetch before it is needed
    clipself-seg weights check                # which of all that get fetched are the published ones
    clipself-seg weights check my_folder      # which of its files are
    clipself-seg weights verify openai-vitb16 # published outputs of the weights, computed anew

A name stands wherever a path of weights does, such as --model catseg-base. "by hand" means that the publisher's page
needs a browser: get says which page, and where to put the file. "ship" reads the licence that the publisher states:
yes and no, a product may contain them or not; ask, the licence leaves it open. verify fetches the weights and the
images that it needs, and prints each number beside the published one; with --all it goes on without what cannot be had.
Exit status: 0, 1 if a file of check is not the published one, the folders that it is given have none, or a number of
verify differs, 2 if a name is unknown, a file cannot be fetched, or verify --all could not compute all numbers and none
of the others differs.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipself_seg.commands.options import CommandLine, command, flag, task, value
from clipself_seg.errors import InputError, known

if TYPE_CHECKING:
    from clipself_seg.checkpoints.zoo import Entry

ACTIONS = ("list", "get", "check", "verify")
ANSWERS = ("yes", "ask", "no")  # of `Entry.may_ship`
# Keys of what is no model by itself -> headings.
KINDS = {
    "MODEL.CLIP.WEIGHTS": "CLIP alone",
    "MODEL.MASK_GENERATOR.OUTPUTS": "masks for --masks",
    "": "part of a model",
}
WIDTH = 100  # letters of a line
HEADINGS = ("name", "licence", "ship", "size", "here", "published")
# In place of the numbers of a CLIP that finds segments or boxes.
BY_MASKS = "by eomt's masks"
NOTES = (
    "* of the repository, nothing is said of the weights. All numbers: docs/tables/models.md",
    "by eomt's masks: the CLIP names what eomt finds; no number of both is known",
)


def _options(parser: CommandLine) -> None:
    parser.add_argument("action", nargs="?", default="list", choices=ACTIONS, help="action (list)")
    names = "names to get or verify, or folders to check, whose files have the published names"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    task(parser, "task to list: semantic, panoptic or detection")
    value(parser, "--may-ship", "list those that a product may contain, or not", choices=ANSWERS)
    flag(parser, "--all", "verify all weights that are on this machine")


@command(_options, __doc__)
def main(args: argparse.Namespace) -> int:
    """Lists, fetches, checks or verifies weights."""
    if args.action == "get":
        return _get(args.names)
    if args.action == "verify":
        from clipself_seg.commands import verify

        return verify.main(args.names, args.all)
    return _check(args.names) if args.action == "check" else _list(args.task, args.may_ship)


def _list(task: str | None, may_ship: str | None) -> int:
    from tabulate import tabulate

    from clipself_seg.checkpoints.locate import weights_folder
    from clipself_seg.checkpoints.zoo import SHIPPED_MODELS, shipped_tags, zoo
    from clipself_seg.choice import TASKS, require_task

    require_task(task)
    rows: dict[str, list[list[str]]] = {name: [] for name in (*TASKS, *KINDS.values())}
    for entry in zoo().values():
        if may_ship in (None, entry.may_ship):
            for kind in _kinds(entry):
                by_masks = kind in entry.tasks and kind != "semantic"
                numbers = BY_MASKS if by_masks else entry.published
                rows[kind].append([*_cells(entry), numbers])
    lines = []
    for kind, body in rows.items():
        if body and task in (None, kind):
            lines += [f"[{kind}]", *tabulate([HEADINGS, *body], tablefmt="plain").splitlines(), ""]
    lines += textwrap.wrap(
        f"With the package: {', '.join([*shipped_tags(), *SHIPPED_MODELS])}",
        WIDTH,
        break_on_hyphens=False,
    )
    sys.stdout.writelines(f"{_cut(line)}\n" for line in (*lines, *NOTES))
    sys.stdout.write(f"Files are fetched into {weights_folder()}\n")
    return 0


def _kinds(entry: Entry) -> Sequence[str]:
    """Headings that an entry stands under."""
    from clipself_seg.choice import find_model

    if entry.key == "MODEL.WEIGHTS":
        return [find_model(entry.name).task]
    return entry.tasks or [KINDS.get(entry.key, KINDS[""])]


def _cells(entry: Entry) -> list[str]:
    from clipself_seg.checkpoints.locate import present_file

    here = "yes" if present_file(entry) else "no" if entry.addresses else "by hand"
    licence = entry.licence.replace(" (the repository's)", "*").replace(" License", "")
    stated = [licence.partition(",")[0], entry.may_ship]
    return [entry.name, *stated, entry.how_large.replace("about ", "~"), here]


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3].rpartition(' ')[0]} ..."


def _get(names: list[str]) -> int:
    from clipself_seg.checkpoints.locate import fetch
    from clipself_seg.checkpoints.mask_models import MASK_MODELS, mask_model_folder
    from clipself_seg.checkpoints.needs import fetch_parts, missing_parts
    from clipself_seg.checkpoints.zoo import zoo
    from clipself_seg.choice import MODEL_KEYS, find_model

    if not names:
        raise InputError("weights get needs a name: clipself-seg weights lists them")
    parts = []
    for name in names:
        hint = " (clipself-seg weights lists all); those of the package, such as mini, are never fetched"
        key = zoo()[known(name, zoo(), "official weights", hint=hint)].key
        alone = {key: name, "MODEL.MASK_GENERATOR.SOURCE": "masks"}
        # Of a model its CLIP and its tokenizer, too.
        parts += missing_parts(find_model(name).values() if key in MODEL_KEYS else alone)
    fetch_parts(parts)
    for name in names:
        path = mask_model_folder(name) if name in MASK_MODELS else fetch(zoo()[name])
        sys.stdout.write(f"{name}: {path} ({zoo()[name].licence})\n")
    return 0


def _check(folders: list[str]) -> int:
    from clipself_seg.checkpoints.locate import check_entry, own_file, weights_folder
    from clipself_seg.checkpoints.zoo import zoo

    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError(f"no folder {folder}: name one with files of weights")
    bad, none = 0, True
    for entry in zoo().values():
        own = [Path(folder, entry.file) for folder in folders] or filter(None, [own_file(entry)])
        for path in filter(Path.is_file, own):
            said = "" if entry.size or entry.sha256 else ", whose exact size is not published"
            line = f"{path}: {entry.name}{said}"
            try:
                check_entry(path, entry)
            except InputError as error:
                bad, line = 1, f"{entry.name}: error: {error}"
            sys.stdout.write(f"{line}\n")
            none = False
    if none:
        where = ", ".join(folders) or weights_folder()
        sys.stdout.write(f"no published file in {where}: clipself-seg weights get brings one\n")
        bad = int(bool(folders))
    return bad
