"""Segment photographs with words of your own."""

import sys

from clipself_seg.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
