"""Run the mask generator over a data set once, and keep its outputs for every image."""

import sys

from clipself_seg.commands.write_generator_outputs import main

if __name__ == "__main__":
    sys.exit(main())
