"""Noun phrases of COCO's captions, for training the caption model."""

import sys

from clipself_seg.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main("coco_captions"))
