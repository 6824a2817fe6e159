"""Write the generated tables of docs/: official checkpoints (models.md), kinds of CLIP and weights (towers.md)."""

import re
import sys
from pathlib import Path

from tower_tables import configs_table, kinds_table, weights_table

from clipself_seg.checkpoints.zoo import Entry, zoo
from clipself_seg.files import write_text
from clipself_seg.tables.page import markdown_table
from clipself_seg.tables.table import published_numbers

ROOT = Path(__file__).resolve().parent.parent


# Title of a family -> expression for the names of its weights; a name is of the first that fits.
FAMILIES = {
    "CAT-Seg: pixels": "catseg-",
    "FC-CLIP, OVRCOAT, ODISE: segments": "fcclip-|ovrcoat-|odise-",
    "F-ViT: boxes": "fvit-",
    "CLIPSelf's CLIPs": "clipself-",
    "OpenAI CLIP": "openai-",
    "EVA-02 CLIP": "(?i)eva02-",
    "TIPSv2": "tipsv2-",
    "SigLIP 2": ".*-SigLIP2",
    "SigLIP": ".*-SigLIP",
    "PE-Core": "PE-Core-",
    "LAION, DataComp, DFN, MetaCLIP": ".*:",
    "Parts of models": "",
}


def zoo_table() -> str:
    """A folded table for each family, a row for each official checkpoint."""
    rows: dict[str, list[list[str]]] = {title: [] for title in FAMILIES}
    for entry in zoo().values():
        title = next(title for title, name in FAMILIES.items() if re.match(name, entry.name))
        rows[title].append(_row(entry))
    heads = ["name", "may I ship it: licence", "published"]
    return "\n".join(
        f"<details><summary><b>{title}</b> ({len(own)})</summary>\n\n{markdown_table(heads, own)}\n\n</details>\n"
        for title, own in rows.items()
    )


def _row(entry: Entry) -> list[str]:
    by_hand = "" if entry.addresses else " (by hand)"
    config = f"<br>`{entry.configs[0]}`" if entry.key == "MODEL.WEIGHTS" else ""
    numbers = published_numbers(entry) or "none"
    return [f"`{entry.name}`{by_hand}{config}", f"{entry.may_ship}: {entry.licence}", numbers]


PAGES = {
    "docs/models.md": {"zoo": zoo_table},
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
        write_text(ROOT / page, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
