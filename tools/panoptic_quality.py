"""Panoptic quality (PQ, SQ, RQ) of a prediction in COCO's format: a JSON and a folder of PNGs."""

import sys

from clipself_seg.commands.panoptic_quality import main

if __name__ == "__main__":
    sys.exit(main())
