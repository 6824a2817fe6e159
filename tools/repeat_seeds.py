"""Train and evaluate configurations under several seeds, and tell mean and spread.

    python tools/repeat_seeds.py configs/mini/semseg_original.yaml configs/mini/semseg.yaml
    python tools/repeat_seeds.py configs/mini/patches.yaml --seeds 0 1 2 3 --show boxes.thing.top1
    python tools/repeat_seeds.py configs/mini/panoptic.yaml --evaluate configs/mini/panoptic_original.yaml \\
        --show /PQ /PQ_unseen

Finished runs below the output folder are not repeated; an interrupted one is gone on with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clipself_seg.errors import report_input_errors


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", help="files below configs/")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--output", type=Path, default=Path("output/seeds"), help="(output/seeds)")
    parser.add_argument(
        "--show",
        nargs="+",
        default=["/mIoU", "/mIoU-seen", "/mIoU-unseen"],
        help="ends of the names of the numbers to print",
    )
    parser.add_argument(
        "--evaluate",
        nargs="+",
        default=[],
        metavar="CONFIG",
        help="files under which what the first configuration trained is evaluated too",
    )
    parser.add_argument("--opts", nargs="*", default=[], help="further KEY VALUE of every run")
    return parser.parse_args()


@report_input_errors
def main() -> None:
    """Run it."""
    arguments = parse_arguments()
    from clipself_seg.training.repeat import repeat, spread_table

    output = arguments.output.absolute()
    given = (arguments.configs, arguments.seeds, output, arguments.opts, arguments.evaluate)
    found = repeat(*given)
    sys.stdout.write(f"\n{spread_table(found, arguments.show)}\n{output / 'seeds.json'}\n")


if __name__ == "__main__":
    sys.exit(main())
