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
    from clipself_seg.data.prepare.voc import prepare_voc20

    for done in prepare_voc20(options_of(arguments)):
        sys.stdout.write(f"{done}\n")


if __name__ == "__main__":
    sys.exit(main())
