#!/usr/bin/env python3
"""Train and evaluate every model of this project: the command of `clipself_seg.commands.train`."""

import sys

from clipself_seg.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
