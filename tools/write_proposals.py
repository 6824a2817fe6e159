"""Write the proposals of a trained F-ViT's RPN for the images of a data set."""

import sys

from clipself_seg.commands.write_proposals import main

if __name__ == "__main__":
    sys.exit(main())
