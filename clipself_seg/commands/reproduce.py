"""The paper's tables by one command (`reproduce`), and mean and spread of any configurations (`repeat_seeds`)."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from clipself_seg.commands.options import command, flag, further_keys, value
from clipself_seg.errors import GOES_ON

SEEDS = [0, 1, 2]
NUMBERS = ["/mIoU", "/mIoU-seen", "/mIoU-unseen"]


def _reproduce_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table", nargs="+", default=[], metavar="NAME", help="names below configs/tables (all)"
    )
    value(parser, "--seeds", default=SEEDS, kind=int, count="+")
    flag(parser, "--list", "print rows and claims, run nothing")
    flag(parser, "--dry-run", "print the commands and their cost, run nothing")
    flag(parser, "--page", "write the page from what is finished, run nothing")
    flag(parser, "--real", "on real data, not the mini world")
    value(parser, "--num-gpus", "GPUs of each run, one run at a time; 0 is a CPU", 0)
    value(parser, "--output", "folder of the runs", Path("output/reproduce"))
    parser.add_argument(
        "--docs",
        type=Path,
        help="folder of the page and of what is kept of the runs, the only results that count then (page/ below "
        "--output, beside the results that come with the project)",
    )


@command(_reproduce_options, again=GOES_ON)
def reproduce(args: argparse.Namespace) -> int:
    """Compute the paper's tables, in miniature or on real data: run what is missing, and write the page.

        clipself-seg reproduce                            # all tables on the mini world -> output/reproduce/page
        clipself-seg reproduce --table 1a 2 A1 --seeds 0  # some of them, one seed: numbers, no verdicts
        clipself-seg reproduce --list                     # rows and claims, and what is finished
        clipself-seg reproduce --dry-run                  # commands that would run, and their cost
        clipself-seg reproduce --real --num-gpus 8        # the same tables on real data

    A run's folder follows from its configuration, data and weights: finished ones are not repeated, interrupted ones
    are gone on with, and one run serves several tables.
    """
    with _errors_of_configurations_alone():
        return _reproduce(args)


@contextlib.contextmanager
def _errors_of_configurations_alone() -> Iterator[None]:
    """What this machine would compute in which precision is each run's own to say."""
    logger = logging.getLogger("clipself_seg.config")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reproduce(args: argparse.Namespace) -> int:
    """Prints, or runs and writes the page; the status is 1 if a run failed or could not be made."""
    from clipself_seg.tables.reproduce import Reproduction, write_worlds
    from clipself_seg.tables.table import read_tables

    read_tables(args.table)  # before anything is drawn
    reproduction = Reproduction(
        scale="real" if args.real else "mini",
        seeds=args.seeds,
        output=args.output.absolute(),
        docs=args.docs and args.docs.absolute(),
    )
    if args.list:
        reproduction.list_rows(args.table)
    if args.dry_run:
        reproduction.dry_run(args.table, gpus=args.num_gpus)
    if args.page:
        reproduction.write_page()
    if args.list or args.dry_run or args.page:
        return 0
    if not args.real:
        write_worlds()
    return reproduction.run(args.table, gpus=args.num_gpus)


def _seeds_options(parser: argparse.ArgumentParser) -> None:
    value(parser, "configs", "files below configs/", count="+")
    value(parser, "--seeds", default=SEEDS, kind=int, count="+")
    value(parser, "--output", default=Path("output/seeds"))
    parser.add_argument(
        "--show", nargs="+", default=NUMBERS, help="ends of the names of the numbers to print"
    )
    parser.add_argument(
        "--evaluate",
        nargs="+",
        default=[],
        metavar="CONFIG",
        help="files under which what the first configuration trained is evaluated too",
    )
    further_keys(parser, "every run")


@command(_seeds_options, again=GOES_ON)
def repeat_seeds(args: argparse.Namespace) -> None:
    """Train and evaluate configurations under several seeds; gives mean and spread.

        clipself-seg tools repeat-seeds configs/mini/semseg_original.yaml configs/mini/semseg.yaml
        clipself-seg tools repeat-seeds configs/mini/patches.yaml --seeds 0 1 2 3 --show boxes.thing.top1
        clipself-seg tools repeat-seeds configs/mini/panoptic.yaml --evaluate configs/mini/panoptic_original.yaml \\
            --show /PQ /PQ_unseen

    Finished runs below the output folder are not repeated; an interrupted one is gone on with. A run's folder
    follows from its configuration with all options, its data and its weights.
    """
    from clipself_seg.tables.repeat import repeat, spread_table

    output = args.output.absolute()
    results = repeat(args.configs, args.seeds, output, args.opts, args.evaluate)
    sys.stdout.write(f"\n{spread_table(results, args.show)}\n{output / 'seeds.json'}\n")
