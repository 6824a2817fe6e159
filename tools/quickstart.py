"""See CLIPSelf's claims on the mini world: a quarter of an hour on two cores."""

import sys

from clipself_seg.commands.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
