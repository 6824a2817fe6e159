"""Label maps of ADE20K's 150 classes.

    python tools/prepare_ade150.py
    python tools/prepare_ade150.py --root /data/datasets --processes 8

Reads ADEChallengeData2016/annotations and writes ADEChallengeData2016/annotations_detectron2.
What is there already is kept; an interrupted run is completed by the next.
"""

from __future__ import annotations

import argparse
import sys

from clipself_seg.data.prepare.common import Options, Prepared, run_prepare
from clipself_seg.errors import report_input_errors


def _prepare(options: Options, arguments: argparse.Namespace) -> list[Prepared]:
    from clipself_seg.data.prepare.ade import prepare_ade150

    return prepare_ade150(options, arguments.splits)


@report_input_errors
def main() -> None:
    """Prepare, and say what was done."""
    run_prepare(__doc__, _prepare, splits=("training", "validation"), default=["validation"])


if __name__ == "__main__":
    sys.exit(main())
