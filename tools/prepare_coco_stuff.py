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

from clipself_seg.data.prepare.common import Options, Prepared, run_prepare
from clipself_seg.errors import report_input_errors


def _prepare(options: Options, arguments: argparse.Namespace) -> list[Prepared]:
    from clipself_seg.data.prepare.coco_stuff import prepare_coco_stuff

    return prepare_coco_stuff(options, arguments.splits)


@report_input_errors
def main() -> None:
    """Prepare, and say what was done."""
    run_prepare(__doc__, _prepare, splits=("train2017", "val2017"))


if __name__ == "__main__":
    sys.exit(main())
