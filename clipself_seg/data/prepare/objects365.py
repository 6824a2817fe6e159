"""Objects365 v1: the same annotations with the categories in the order of their ids."""

from __future__ import annotations

from pathlib import Path

from clipself_seg.data.datasets.table import OBJECTS365
from clipself_seg.data.instances import category_indices
from clipself_seg.data.prepare.annotations import Content, Count, Rewriting, rewrite
from clipself_seg.data.prepare.common import Options, Prepared
from clipself_seg.data.records import coco_list
from clipself_seg.data.vocabulary import load_vocabulary


def prepare_objects365(options: Options) -> list[Prepared]:
    """Write Objects365v1/objects365_reorder_val.json from objects365_val.json beside it.

    Args:
        options: root folder, and whether a file is written again.

    Raises:
        InputError: the official file is missing or broken, or its names are not those of v1.
    """
    folder = options.root / "Objects365v1"
    target = folder / "objects365_reorder_val.json"
    return [
        rewrite(Rewriting(folder / "objects365_val.json", target, OBJECTS365, reorder), options)
    ]


def reorder(content: Content, source: Path) -> list[Count]:
    """Sort the categories by id, once their names are known to be those of the vocabulary."""
    category_indices(content, load_vocabulary("objects365_v1"), source, by_order=True)
    content["categories"] = sorted(content["categories"], key=lambda entry: entry["id"])
    return [
        Count("images", len(coco_list(content, "images", source)), 30_000),
        Count("categories", len(content["categories"]), 365),
    ]
