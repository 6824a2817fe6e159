"""Region recognition of several models in one table and one picture."""

import sys

from clipself_seg.commands.compare_regions import main

if __name__ == "__main__":
    sys.exit(main())
