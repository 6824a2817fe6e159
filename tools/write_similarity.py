"""How alike the classes of a vocabulary are in WordNet."""

import sys

from clipself_seg.commands.write_similarity import main

if __name__ == "__main__":
    sys.exit(main())
