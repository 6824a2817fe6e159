"""Label maps of all 459 classes of PASCAL Context.

    python tools/prepare_pascal_context_459.py
    python tools/prepare_pascal_context_459.py --root /data/datasets --processes 8

Reads VOCdevkit/VOC2010/trainval/*.mat for the names in VOCdevkit/VOC2010/pascalcontext_val.txt
and writes annotations_detectron2/pc459_val beside them.
What is there already is kept; an interrupted run is completed by the next.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clipself_seg.data.prepare.common import add_arguments, options_of
from clipself_seg.errors import report_input_errors


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--list", type=Path, help="names of the pictures, instead of that file")
    return parser.parse_args()


@report_input_errors
def main() -> None:
    """Prepare, and say what was done."""
    arguments = parse_arguments()
    from clipself_seg.data.prepare.pascal_context import prepare_pascal_context_459

    for done in prepare_pascal_context_459(options_of(arguments), arguments.list):
        sys.stdout.write(f"{done}\n")


if __name__ == "__main__":
    sys.exit(main())
