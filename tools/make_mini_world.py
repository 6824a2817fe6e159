"""Write the two mini worlds in COCO's formats: pictures, panoptic and instance labels, captions, proposals.

    python tools/make_mini_world.py
    python tools/make_mini_world.py --output /tmp/worlds --train 2000 --val 500 --seed 1

A world that is already there with the same numbers is kept. Data sets `mini_train`, `mini_val_panoptic`,
`mini2_val_panoptic`, ... are read from $CLIPSELF_SEG_MINI, by default output/mini_world.
"""

from __future__ import annotations

import argparse
import os
import sys

from clipself_seg.errors import report_input_errors


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = os.environ.get("CLIPSELF_SEG_MINI", "output/mini_world")
    parser.add_argument("--output", default=default, help=f"folder of both worlds ({default})")
    parser.add_argument(
        "--train", type=int, default=400, help="training scenes of each world (400)"
    )
    parser.add_argument(
        "--val", type=int, default=200, help="validation scenes of each world (200)"
    )
    parser.add_argument(
        "--base", type=int, default=800, help="scenes without unseen classes, for training (800)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides every scene (0)")
    return parser.parse_args()


@report_input_errors
def main() -> None:
    """Write the worlds and say where they are."""
    arguments = parse_arguments()
    from clipself_seg.mini.writer import WorldSize, make_worlds

    size = WorldSize(arguments.train, arguments.val, arguments.seed, arguments.base)
    written = make_worlds(arguments.output, size)
    sys.stdout.write(f"{arguments.output}: {'written' if written else 'complete already'}\n")


if __name__ == "__main__":
    sys.exit(main())
