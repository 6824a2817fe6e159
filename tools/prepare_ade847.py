"""Pictures and label maps of ADE20K's 847 classes.

    python tools/prepare_ade847.py
    python tools/prepare_ade847.py --root /data/datasets --processes 8

Reads ADE20K_2021_17_01/images/ADE (its index_ade20k.pkl is not needed) and writes
images_detectron2 and annotations_detectron2 beside it.
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
        default=["validation"],
        choices=("training", "validation"),
        help="to prepare (%(default)s)",
    )
    return parser.parse_args()


@report_input_errors
def main() -> None:
    """Prepare, and say what was done."""
    arguments = parse_arguments()
    from clipself_seg.data.prepare.ade import prepare_ade847

    for done in prepare_ade847(options_of(arguments), arguments.splits):
        sys.stdout.write(f"{done}\n")


if __name__ == "__main__":
    sys.exit(main())
