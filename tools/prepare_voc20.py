"""Label maps of PASCAL VOC 2012: VOC-20 without background, and VOC-20b with it."""

import sys

from clipself_seg.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main("voc20"))
