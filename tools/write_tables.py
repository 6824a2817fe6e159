"""Write the generated tables of README.md and docs/towers.md: official checkpoints, kinds of CLIP, their weights."""

import re
import sys
from pathlib import Path

from tower_tables import configs_table, kinds_table, weights_table

from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.files import atomic_path
from recipe_tables import numbers_of

ROOT = Path(__file__).resolve().parent.parent


def zoo_table() -> str:
    """A row for each official checkpoint."""
    rows = [
        "| name | goes with | licence of the weights | published | measured here |",
        "| --- | --- | --- | --- | --- |",
    ]
    for entry in zoo().values():
        configs = [f"`{config}`" for config in entry.configs]
        goes_with = ", ".join([*([entry.model] if entry.model else []), *configs[:2]])
        by_hand = "" if entry.addresses else " (by hand)"
        rows.append(
            f"| `{entry.name}`{by_hand} | {goes_with}{', ...' if len(configs) > 2 else ''} | "
            f"{entry.licence} | {numbers_of(entry) or 'none'} | {entry.measured or 'not run'} |"
        )
    return "\n".join(rows) + "\n"


PAGES = {
    "README.md": {"zoo": zoo_table},
    "docs/towers.md": {"kinds": kinds_table, "weights": weights_table, "configs": configs_table},
}


def main() -> int:
    """Replace what is between the marks of each table; the status is 1 where they are missing."""
    for page, tables in PAGES.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, make in tables.items():
            between = re.compile(rf"(?<=<!-- {name} -->\n).*(?=<!-- end of {name} -->)", re.DOTALL)
            new = f"\n{make()}\n".replace("\\", r"\\")
            text, count = between.subn(new, text)
            if not count:
                return 1
        with atomic_path(ROOT / page) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
