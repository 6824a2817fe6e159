#!/usr/bin/env python3
"""Compute the paper's tables by one command."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipself_seg.commands.options import command, flag, further_keys, value
from clipself_seg.errors import GOES_ON, InputError

if TYPE_CHECKING:
    from lab.tables.table import Table

SEEDS = [0, 1, 2]
KEY = "MODEL.CLIP.BACKBONE"


def _reproduce_options(parser: argparse.ArgumentParser) -> None:
    value(parser, "--table", "tables by name, or your files (all)", [], count="+", metavar="NAME")
    value(parser, "--seeds", default=SEEDS, kind=int, count="+")
    flag(parser, "--list", "print rows and claims, run nothing")
    flag(parser, "--dry-run", "print the commands and their cost, run nothing")
    flag(parser, "--page", "write the page from what is finished, run nothing")
    flag(parser, "--unmark", "take +dirty from kept results where their code is shown, run nothing")
    flag(parser, "--real", "on real data, not the mini world; prints the plan, runs nothing")
    flag(parser, "--rehearse", "two steps of a run of each recipe, on random weights")
    flag(parser, "--start", "run the plan of --real")
    hours = "hours of GPUs, without GPUs of cores, to spend (as many as all takes)"
    value(parser, "--hours", hours, kind=float)
    parser.set_defaults(hours=math.inf)
    value(parser, "--num-gpus", "GPUs of each run, one run at a time; 0 is a CPU", 0)
    value(parser, "--output", "folder of the runs", Path("output/reproduce"))
    docs = "folder of the page and of results, which alone count then (page/ below --output, and the project's results)"
    value(parser, "--docs", docs, kind=Path)
    further_keys(parser, "the rows of what --import registers")
    value(parser, "--data", "your labelled images, for tables that need no others", metavar="PATH")


@command(_reproduce_options, again=GOES_ON)
def reproduce(args: argparse.Namespace) -> int:
    """Compute the paper's tables, in miniature or on real data: run what is missing, and write the page.

        python tools/reproduce.py                            # all tables on the mini world -> output/reproduce/page
        python tools/reproduce.py --table 1a 2 A1 --seeds 0  # some of them, one seed: numbers, no verdicts
        python tools/reproduce.py --list                     # rows and claims, and what is finished
        python tools/reproduce.py --dry-run                  # commands that would run, and their cost
        python tools/reproduce.py --real                     # the plan on real data: hours, disk, data, weights
        python tools/reproduce.py --real --rehearse          # two steps of each recipe, on a part of the data
        python tools/reproduce.py --real --table 2 5 --hours 24 --num-gpus 8 --start     # run it: 24 hours
        python tools/reproduce.py --table my_table.yaml --import my_method.py   # a table of yours
        python tools/reproduce.py --table backbone --import my_backbone.py      # your row beside kept ones
        python tools/reproduce.py --table zero_shot --real --data my_data.yaml --start   # on your images

    A run's folder follows from its configuration, data and weights: finished ones are not repeated, interrupted ones
    are gone on with, and one run serves several tables.
    """
    with _errors_of_configurations_alone():
        return _reproduce(args)


@contextlib.contextmanager
def _errors_of_configurations_alone() -> Iterator[None]:
    """Mute the warnings of configurations, such as on precisions: each run gives its own."""
    logger = logging.getLogger("clipself_seg.config")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reproduce(args: argparse.Namespace) -> int:
    """Prints, or runs and writes the page; the status is 1 if a run failed or could not be made."""
    from lab.tables.reproduce import Reproduction, refuse_other_worlds, write_worlds
    from lab.tables.table import read_tables

    if not args.hours > 0:
        raise InputError(f"--hours {args.hours:g} pays for nothing: give hours above 0, such as 24")
    tables = read_tables(args.table)  # before anything is drawn
    data = ""
    data_sets: tuple[str, ...] = ()
    if args.data:
        from clipself_seg.data.datasets.own import register_data

        data = os.path.abspath(os.path.expanduser(args.data))
        data_sets = register_data(data, "semantic").test
    reproduction = Reproduction(
        yours=_yours(args.opts, tables),
        data=data,
        data_sets=data_sets,
        scale="real" if args.real else "mini",
        seeds=args.seeds,
        output=args.output.absolute(),
        docs=args.docs and args.docs.absolute(),
    )
    if not (args.real or args.page or args.unmark):
        refuse_other_worlds()
    if args.list:
        reproduction.list_rows(args.table)
    if args.unmark:
        reproduction.unmark()
    if args.rehearse:
        return reproduction.rehearse(args.table, gpus=args.num_gpus)
    planned = args.real and not (args.start or args.list or args.page)
    if args.dry_run or planned:
        reproduction.dry_run(args.table, gpus=args.num_gpus, hours=args.hours)
    if planned and not args.dry_run:
        sys.stdout.write("nothing was started: --start runs this\n")
    if args.page:
        reproduction.write_page(args.table)
    if args.list or args.dry_run or args.page or args.unmark or planned:
        return 0
    if not args.real:
        write_worlds()
    return reproduction.run(args.table, gpus=args.num_gpus, hours=args.hours)


def _yours(words: Sequence[str], tables: Sequence[Table]) -> dict[str, str] | None:
    """Keys and values of the rows of what ``--import`` registers, its one backbone among them; None without any.

    Raises:
        InputError: keys for tables without such rows; several backbones, or nothing that is the user's.
    """
    from detectron2.modeling import BACKBONE_REGISTRY

    from clipself_seg.imports import import_typed_modules
    from clipself_seg.yaml_files import option_pairs
    from lab.tables.runs import typed_sources
    from lab.tables.table import runs_of_yours

    options = option_pairs(words)
    rows = any(map(runs_of_yours, tables))
    if options and not rows:
        raise InputError("--opts: no table here has a row of yours; --table backbone has one")
    import_typed_modules()
    modules = typed_sources()
    if rows and modules and KEY not in options:
        entries = [
            name
            for name, entry in BACKBONE_REGISTRY
            if entry.__module__.partition(".")[0] in modules
        ]
        if len(entries) > 1:
            raise InputError(f"--import registers {' and '.join(entries)}: type --opts {KEY} NAME")
        if entries:
            options[KEY] = entries[0]
            sys.stdout.write(f"{KEY} {entries[0]}, which --import registers\n")
        elif not options and "backbone" in [table.name for table in tables]:
            raise InputError(
                "--import registers no backbone: say what is yours, such as --opts KEY VALUE"
            )
    return options if options or modules else None


if __name__ == "__main__":
    sys.exit(reproduce())
