"""Label maps of ADE20K's 150 classes."""

import sys

from clipself_seg.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main("ade150"))
