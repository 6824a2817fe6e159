"""Label maps of PASCAL Context's 59 frequent classes."""

import sys

from clipself_seg.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main("pascal_context_59"))
