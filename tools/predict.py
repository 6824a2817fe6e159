"""Segment images with your own class names."""

import sys

from clipself_seg.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
