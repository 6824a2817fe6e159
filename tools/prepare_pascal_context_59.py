"""Label maps of PASCAL Context's 59 frequent classes.

    python tools/prepare_pascal_context_59.py
    python tools/prepare_pascal_context_59.py --root /data/datasets --processes 8

Reads VOCdevkit/VOC2010/trainval_merged.json and writes annotations_detectron2/pc59_val beside it.
The JSON is read whole, which takes some gigabytes of memory.
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
    return parser.parse_args()


@report_input_errors
def main() -> None:
    """Prepare, and say what was done."""
    arguments = parse_arguments()
    from clipself_seg.data.prepare.pascal_context import prepare_pascal_context_59

    for done in prepare_pascal_context_59(options_of(arguments)):
        sys.stdout.write(f"{done}\n")


if __name__ == "__main__":
    sys.exit(main())
