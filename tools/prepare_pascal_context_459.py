"""Label maps of all 459 classes of PASCAL Context."""

import sys

from clipself_seg.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main("pascal_context_459"))
