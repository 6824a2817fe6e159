"""Annotations of OV-LVIS to train on: LVIS v1 without its rare classes."""

import sys

from clipself_seg.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main("ov_lvis"))
