"""Label maps of COCO's 133 panoptic classes, for the mean IoU of panoptic segmentation."""

import sys

from clipself_seg.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main("coco_panoptic_semseg"))
