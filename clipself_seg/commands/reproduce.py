"""The paper's tables by one command, in miniature or on real data: runs what is missing, and writes the page.

    clipself-seg reproduce                            # all tables on the mini world -> docs/tables.md, docs/tables/
    clipself-seg reproduce --table 1a 2 A1 --seeds 0  # some of them, one seed: numbers, no verdicts
    clipself-seg reproduce --list                     # rows and claims, and what is finished
    clipself-seg reproduce --dry-run                  # commands that would run, and their cost
    clipself-seg reproduce --real --num-gpus 8        # the same tables on real data

A run's folder follows from its configuration, data and weights: finished ones are not repeated, interrupted ones are
gone on with, and one run serves several tables.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from clipself_seg.errors import GOES_ON, after_interrupt, report_input_errors


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--table", nargs="+", default=[], metavar="NAME", help="names below configs/tables (all)"
    )
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(0 1 2)")
    options.add_argument("--list", action="store_true", help="print rows and claims, run nothing")
    options.add_argument(
        "--dry-run", action="store_true", help="print the commands and their cost, run nothing"
    )
    options.add_argument(
        "--page", action="store_true", help="write the page from what is finished, run nothing"
    )
    options.add_argument("--real", action="store_true", help="on real data, not the mini world")
    options.add_argument(
        "--num-gpus",
        type=int,
        default=0,
        help="GPUs of each run, one run at a time; 0 is a CPU (0)",
    )
    options.add_argument(
        "--output",
        type=Path,
        default=Path("output/reproduce"),
        help="folder of the runs (output/reproduce)",
    )
    options.add_argument("--docs", type=Path, default=Path("docs"), help="of the page (docs)")
    options.add_argument(
        "--weights", type=Path, default=Path("weights"), help="of published weights (weights)"
    )
    return options


@report_input_errors
@after_interrupt(GOES_ON)
def main(arguments: list[str] | None = None) -> int:
    """Print, or run and write the page; the status is 1 if a run failed or could not be made."""
    args = parser().parse_args(arguments)
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
    from clipself_seg.tables.reproduce import Reproduction, write_worlds
    from clipself_seg.tables.table import read_tables

    read_tables(args.table)  # before anything is drawn
    reproduction = Reproduction(
        scale="real" if args.real else "mini",
        seeds=args.seeds,
        output=args.output.absolute(),
        docs=args.docs.absolute(),
        weights=args.weights.absolute(),
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
