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

from clipself_seg.data.prepare.common import Options, Prepared, run_prepare
from clipself_seg.errors import report_input_errors


def _prepare(options: Options, arguments: argparse.Namespace) -> list[Prepared]:
    from clipself_seg.data.prepare.ade import prepare_ade847

    return prepare_ade847(options, arguments.splits)


@report_input_errors
def main() -> None:
    """Prepare, and say what was done."""
    run_prepare(__doc__, _prepare, splits=("training", "validation"), default=["validation"])


if __name__ == "__main__":
    sys.exit(main())
