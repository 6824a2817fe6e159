#!/usr/bin/env python3
"""Train and evaluate any configurations under several seeds: mean and spread of their numbers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clipself_seg.commands.options import command, further_keys, value
from clipself_seg.errors import GOES_ON

SEEDS = [0, 1, 2]
NUMBERS = ["/mIoU", "/mIoU-seen", "/mIoU-unseen"]


def _seeds_options(parser: argparse.ArgumentParser) -> None:
    value(parser, "configs", "files below configs/", count="+")
    value(parser, "--seeds", default=SEEDS, kind=int, count="+")
    value(parser, "--output", default=Path("output/seeds"))
    value(parser, "--show", "ends of the names of the numbers to print", NUMBERS, count="+")
    further_keys(parser, "every run")


@command(_seeds_options, again=GOES_ON)
def repeat_seeds(args: argparse.Namespace) -> None:
    """Train and evaluate configurations under several seeds; gives mean and spread.

        python tools/repeat_seeds.py configs/mini/semseg_original.yaml configs/mini/semseg.yaml
        python tools/repeat_seeds.py configs/mini/patches.yaml --seeds 0 1 2 3 --show boxes.thing.top1
        python tools/repeat_seeds.py configs/mini/panoptic.yaml --show /PQ /PQ_unseen

    Finished runs below the output folder are not repeated; an interrupted one is gone on with. A run's folder
    follows from its configuration with all options, its data and its weights.
    """
    from lab.tables.repeat import repeat, spread_table

    output = args.output.absolute()
    results = repeat(args.configs, args.seeds, output, args.opts)
    sys.stdout.write(f"\n{spread_table(results, args.show)}\n{output / 'seeds.json'}\n")


if __name__ == "__main__":
    sys.exit(repeat_seeds())
