"""Label maps of COCO-Stuff's 171 classes.

    python tools/prepare_coco_stuff.py
    python tools/prepare_coco_stuff.py --root /data/datasets --processes 8 --splits val2017

Reads coco-stuff/annotations/{train2017,val2017}, the PNGs of stuffthingmaps_trainval2017.zip,
and writes coco-stuff/annotations_detectron2.
What is there already is kept; an interrupted run is completed by the next.
"""

from __future__ import annotations

import argparse
import sys

from clipself_seg.data.prepare.common import add_arguments, options_of
from clipself_seg.errors import report_input_errors


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["train2017", "val2017"],
        choices=("train2017", "val2017"),
        help="to prepare (%(default)s)",
    )
    return parser.parse_args()


@report_input_errors
def main() -> None:
    """Prepare, and say what was done."""
    arguments = parse_arguments()
    from clipself_seg.data.prepare.coco_stuff import prepare_coco_stuff

    for done in prepare_coco_stuff(options_of(arguments), arguments.splits):
        sys.stdout.write(f"{done}\n")


if __name__ == "__main__":
    sys.exit(main())
