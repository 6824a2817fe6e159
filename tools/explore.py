"""Write a page of heat maps to click, in one file: what the dense features of several CLIPs see where."""

import sys

from clipself_seg.commands.explore import main

if __name__ == "__main__":
    sys.exit(main())
