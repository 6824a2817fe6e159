"""Which data sets are present, complete, unprepared or broken, and the command that mends each."""

import sys

from clipself_seg.commands.check_datasets import main

if __name__ == "__main__":
    sys.exit(main())
