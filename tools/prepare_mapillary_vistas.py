"""Panoptic and instance labels and label maps of Mapillary Vistas v1.2, 65 classes."""

import sys

from clipself_seg.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main("mapillary_vistas"))
