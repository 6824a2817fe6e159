"""See what dense features see: K-Means of images, and a heat map for each word, for several CLIPs."""

import sys

from clipself_seg.commands.dense_maps import main

if __name__ == "__main__":
    sys.exit(main())
