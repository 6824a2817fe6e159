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

from clipself_seg.data.prepare.common import Options, Prepared, run_prepare
from clipself_seg.errors import report_input_errors


def _prepare(options: Options, arguments: argparse.Namespace) -> list[Prepared]:
    from clipself_seg.data.prepare.pascal_context import prepare_pascal_context_59

    return prepare_pascal_context_59(options)


@report_input_errors
def main() -> None:
    """Prepare, and say what was done."""
    run_prepare(__doc__, _prepare)


if __name__ == "__main__":
    sys.exit(main())
