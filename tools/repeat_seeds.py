"""Train and evaluate configurations under several seeds; gives mean and spread."""

import sys

from clipself_seg.commands.repeat_seeds import main

if __name__ == "__main__":
    sys.exit(main())
