"""Run the mask generator over a data set once, and keep what it says of every picture."""

import sys

from clipself_seg.commands.write_generator_outputs import main

if __name__ == "__main__":
    sys.exit(main())
