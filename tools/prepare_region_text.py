"""Give the boxes of a data set nouns of captions, for region-text training."""

import sys

from clipself_seg.commands.prepare_region_text import main

if __name__ == "__main__":
    sys.exit(main())
