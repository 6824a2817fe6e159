"""Label maps of COCO's 133 panoptic classes, for the mean IoU of panoptic segmentation.

    python tools/prepare_coco_panoptic_semseg.py
    python tools/prepare_coco_panoptic_semseg.py --root /data/datasets --processes 8 --splits val2017

Reads coco/annotations/panoptic_{train2017,val2017}.json and coco/panoptic_{train2017,val2017},
and writes coco/panoptic_semseg_{train2017,val2017}.
What is there already is kept; an interrupted run is completed by the next.
"""

from __future__ import annotations

import argparse
import sys

from clipself_seg.data.prepare.common import Options, Prepared, run_prepare
from clipself_seg.errors import report_input_errors


def _prepare(options: Options, arguments: argparse.Namespace) -> list[Prepared]:
    from clipself_seg.data.prepare.coco_panoptic_semseg import prepare_coco_panoptic_semseg

    return prepare_coco_panoptic_semseg(options, arguments.splits)


@report_input_errors
def main() -> None:
    """Prepare, and say what was done."""
    run_prepare(__doc__, _prepare, splits=("train2017", "val2017"))


if __name__ == "__main__":
    sys.exit(main())
