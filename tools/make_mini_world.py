"""Write the two mini worlds in COCO's formats: images, panoptic and instance labels, captions, proposals."""

import sys

from clipself_seg.commands.make_mini_world import main

if __name__ == "__main__":
    sys.exit(main())
