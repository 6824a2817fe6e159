"""Write the table of official checkpoints into README.md, from clipself_seg/zoo.yaml."""

import re
import sys
from pathlib import Path

from clipself_seg.checkpoints.zoo import table
from clipself_seg.files import atomic_path

README = Path(__file__).resolve().parent.parent / "README.md"
BETWEEN = re.compile(r"(?<=<!-- zoo -->\n).*(?=<!-- end of zoo -->)", re.DOTALL)


def main() -> int:
    """Replace what is between the two marks; the status is 1 where they are missing."""
    text, count = BETWEEN.subn(lambda _: f"\n{table()}\n", README.read_text(encoding="utf-8"))
    if count:
        with atomic_path(README) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
