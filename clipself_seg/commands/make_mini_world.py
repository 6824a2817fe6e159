"""Write the two mini worlds in COCO's formats: images, panoptic and instance labels, captions, proposals.

    clipself-seg data mini-world
    clipself-seg data mini-world --output /tmp/worlds --train 2000 --val 500 --seed 1

A world that is already there with the same numbers is kept. Data sets `mini_train`, `mini_val_panoptic`,
`mini2_val_panoptic`, ... are read from $CLIPSELF_SEG_MINI, by default output/mini_world.
"""

from __future__ import annotations

import argparse
import os
import sys

from clipself_seg.errors import GOES_ON, after_interrupt, report_input_errors


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = os.environ.get("CLIPSELF_SEG_MINI", "output/mini_world")
    options.add_argument("--output", default=default, help=f"folder of both worlds ({default})")
    options.add_argument(
        "--train", type=int, default=400, help="training scenes of each world (400)"
    )
    options.add_argument(
        "--val", type=int, default=200, help="validation scenes of each world (200)"
    )
    options.add_argument(
        "--base", type=int, default=800, help="scenes without unseen classes, for training (800)"
    )
    options.add_argument("--seed", type=int, default=0, help="decides every scene (0)")
    return options


@report_input_errors
@after_interrupt(f"{GOES_ON} with the next world")
def main(arguments: list[str] | None = None) -> None:
    """Write the worlds and say where they are."""
    args = parser().parse_args(arguments)
    from clipself_seg.mini.writer import WorldSize, make_worlds

    size = WorldSize(args.train, args.val, args.seed, args.base)
    written = make_worlds(args.output, size)
    sys.stdout.write(f"{args.output}: {'written' if written else 'complete already'}\n")
