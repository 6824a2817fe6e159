"""Annotations of Objects365 v1 with its categories in the order of their ids."""

import sys

from clipself_seg.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main("objects365"))
