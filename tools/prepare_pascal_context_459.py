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

from clipself_seg.data.prepare.common import Options, Prepared, run_prepare
from clipself_seg.errors import report_input_errors


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", type=Path, help="names of the pictures, instead of that file")


def _prepare(options: Options, arguments: argparse.Namespace) -> list[Prepared]:
    from clipself_seg.data.prepare.pascal_context import prepare_pascal_context_459

    return prepare_pascal_context_459(options, arguments.list)


@report_input_errors
def main() -> None:
    """Prepare, and say what was done."""
    run_prepare(__doc__, _prepare, more=_add_list)


if __name__ == "__main__":
    sys.exit(main())
