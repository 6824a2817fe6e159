"""Images and label maps of ADE20K's 847 classes."""

import sys

from clipself_seg.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main("ade847"))
