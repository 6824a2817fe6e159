"""Speed and memory of all tasks beside a plain formulation: features, distillation, regions, CAT-Seg, panoptic."""

import sys

from clipself_seg.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
