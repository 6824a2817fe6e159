"""Annotations of OV-COCO: base classes to train on, with novel ones to evaluate."""

import sys

from clipself_seg.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main("ov_coco"))
