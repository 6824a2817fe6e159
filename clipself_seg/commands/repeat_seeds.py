"""Train and evaluate configurations under several seeds; gives mean and spread.

    clipself-seg repeat-seeds configs/mini/semseg_original.yaml configs/mini/semseg.yaml
    clipself-seg repeat-seeds configs/mini/patches.yaml --seeds 0 1 2 3 --show boxes.thing.top1
    clipself-seg repeat-seeds configs/mini/panoptic.yaml --evaluate configs/mini/panoptic_original.yaml \\
        --show /PQ /PQ_unseen

Finished runs below the output folder are not repeated; an interrupted one is gone on with. A run's folder
follows from its configuration with all options, its data and its weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clipself_seg.errors import GOES_ON, after_interrupt, report_input_errors


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("configs", nargs="+", help="files below configs/")
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(0 1 2)")
    options.add_argument("--output", type=Path, default=Path("output/seeds"), help="(output/seeds)")
    options.add_argument(
        "--show",
        nargs="+",
        default=["/mIoU", "/mIoU-seen", "/mIoU-unseen"],
        help="ends of the names of the numbers to print",
    )
    options.add_argument(
        "--evaluate",
        nargs="+",
        default=[],
        metavar="CONFIG",
        help="files under which what the first configuration trained is evaluated too",
    )
    options.add_argument("--opts", nargs="*", default=[], help="further KEY VALUE of every run")
    return options


@report_input_errors
@after_interrupt(GOES_ON)
def main(arguments: list[str] | None = None) -> None:
    """Run every configuration under every seed, and print the table."""
    args = parser().parse_args(arguments)
    from clipself_seg.tables.repeat import repeat, spread_table

    output = args.output.absolute()
    given = (args.configs, args.seeds, output, args.opts, args.evaluate)
    results = repeat(*given)
    sys.stdout.write(f"\n{spread_table(results, args.show)}\n{output / 'seeds.json'}\n")
