"""Train the mini CLIP from scratch on image-caption pairs of the mini worlds (about twenty minutes on two cores)."""

import sys

from clipself_seg.commands.train_mini_clip import main

if __name__ == "__main__":
    sys.exit(main())
