"""Segment images, or detect objects in them, with your own class names."""

import sys

from clipself_seg.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
