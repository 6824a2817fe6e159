"""The paper's tables by one command: runs what is missing, and writes the page."""

import sys

from clipself_seg.commands.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
