"""Convert a CLIP checkpoint between the published layouts."""

import sys

from clipself_seg.commands.convert_clip import main

if __name__ == "__main__":
    sys.exit(main())
