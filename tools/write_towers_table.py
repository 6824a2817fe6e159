"""Write the tables of towers into docs/towers.md, from the kinds, open_clip's tags and clipself_seg/zoo.yaml."""

import re
import sys
from pathlib import Path

from clipself_seg.clip.tower_table import kinds_table, weights_table
from clipself_seg.files import atomic_path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "towers.md"
TABLES = {"kinds": kinds_table, "weights": weights_table}


def main() -> int:
    """Replace what is between the marks of each table; the status is 1 where they are missing."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        between = re.compile(rf"(?<=<!-- {name} -->\n).*(?=<!-- end of {name} -->)", re.DOTALL)
        new = f"\n{table()}\n".replace("\\", r"\\")
        text, count = between.subn(new, text)
        if not count:
            return 1
    with atomic_path(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
