"""Panoptic and instance labels and label maps of Cityscapes' 19 classes."""

import sys

from clipself_seg.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main("cityscapes_panoptic"))
