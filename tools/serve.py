"""Serve the page of heat maps, segments and boxes, for images and words of now."""

import sys

from clipself_seg.commands.serve import main

if __name__ == "__main__":
    sys.exit(main())
