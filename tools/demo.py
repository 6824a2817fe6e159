"""See what the weights that come with the project see: less than a minute on two cores."""

import sys

from clipself_seg.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
