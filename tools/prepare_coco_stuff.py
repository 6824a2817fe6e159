"""Label maps of COCO-Stuff's 171 classes."""

import sys

from clipself_seg.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main("coco_stuff"))
