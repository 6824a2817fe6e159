"""Label maps of PASCAL VOC 2012: VOC-20 without background, and VOC-20b with it.

    python tools/prepare_voc20.py
    python tools/prepare_voc20.py --root /data/datasets --processes 8

Reads VOCdevkit/VOC2012/SegmentationClassAug for the names in ImageSets/Segmentation/val.txt and
writes annotations_detectron2/val and annotations_detectron2_bg/val.
What is there already is kept; an interrupted run is completed by the next.
"""

from __future__ import annotations

import argparse
import sys

from clipself_seg.data.prepare.common import Options, Prepared, run_prepare
from clipself_seg.errors import report_input_errors


def _prepare(options: Options, arguments: argparse.Namespace) -> list[Prepared]:
    from clipself_seg.data.prepare.voc import prepare_voc20

    return prepare_voc20(options)


@report_input_errors
def main() -> None:
    """Prepare, and say what was done."""
    run_prepare(__doc__, _prepare)


if __name__ == "__main__":
    sys.exit(main())
