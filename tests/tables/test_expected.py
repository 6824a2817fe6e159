"""The page of what to expect of each recipe is in step with configurations, tables and code."""

from __future__ import annotations

import pytest

from clipself_seg.tables import expected
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "expected.md").read_text()
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in PAGE.splitlines()
    if line.startswith("| `")
    for cells in [line.strip("| ").split(" | ")]
}


def test_every_recipe_has_a_row():
    assert list(ROWS) == expected.recipes()
    assert len(ROWS) > 40 and not [name for name in ROWS if "base" in name]


def test_published_numbers_are_those_of_the_tables_and_of_the_publishers():
    wrong = [
        n for n, row in ROWS.items() if row[0] != ("<br>".join(expected.published(n)) or "none")
    ]
    assert not wrong, "python -m clipself_seg.tables.expected > docs/expected.md"
    assert (
        "Table 3a, ViT-B/16, original CLIP: novel AP50 17.5"
        in ROWS["detection/ov_coco_eva02_vitb16"][0]
    )


def test_numbers_of_changed_recipes_are_not_in_a_row():
    cell, *_ = ROWS["distill/coco_patches_eva02_vitb16"]
    assert "72.1" in cell and "59.4" not in cell  # of six blocks, Table 1b


@pytest.mark.heavy
def test_the_page_is_as_it_is_written():
    assert expected.page() == PAGE, "python -m clipself_seg.tables.expected > docs/expected.md"
