"""The page of what to expect of each recipe is in step with configurations, tables and code."""

from __future__ import annotations

import pytest

from clipself_seg.tables import expected
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "expected.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
ROWS = [
    (f"{folder}/{cells[0].strip('`')}", cells[1:])
    for folder, text in SECTIONS.items()
    for line in text.splitlines()
    if line.startswith("| `")
    for cells in [line.strip("| ").split(" | ")]
]
PUBLISHED = {name: cells[0] for name, cells in ROWS if len(cells) == 1}
COSTS = {name: cells for name, cells in ROWS if len(cells) > 1}


def test_every_recipe_has_a_row():
    assert list(PUBLISHED) == expected.recipes()
    assert len(PUBLISHED) > 40 and not [name for name in PUBLISHED if "base" in name]
    trained = [n for n in PUBLISHED if not n.startswith("regions") and "transfer" not in n]
    assert set(trained) - set(COSTS) <= {
        "panoptic/masks_vitb16",
        "panoptic/odise_caption_clipself",
        "panoptic/fcclip_convnext_large_clipself",
        "detection/rpn_r50_ov_coco",
    }


def test_published_numbers_are_those_of_the_tables_and_of_the_publishers():
    here = {name: "<br>".join(expected.published(name)) or "none" for name in PUBLISHED}
    assert PUBLISHED == here, "python -m clipself_seg.tables.expected > docs/expected.md"
    original = "Table 3a, ViT-B/16, original CLIP: novel AP50 17.5"
    assert original in here["detection/ov_coco_eva02_vitb16"]


def test_numbers_of_changed_recipes_are_not_in_a_row():
    cell = PUBLISHED["distill/coco_patches_eva02_vitb16"]
    assert "72.1" in cell and "59.4" not in cell  # of six blocks, Table 1b


@pytest.mark.heavy
def test_the_page_is_as_it_is_written():
    assert expected.page() == PAGE, "python -m clipself_seg.tables.expected > docs/expected.md"
