"""The tables of README.md and docs/towers.md are those that the code and the zoo give."""

from __future__ import annotations

import re

import pytest
from tower_tables import configs_table, weights_table
from write_tables import PAGES

from clipself_seg.clip.kinds import KINDS, list_architectures, model_configs
from clipself_seg.clip.prompts import TEMPLATES
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def weights() -> str:
    return weights_table()


@pytest.mark.parametrize(("page", "table"), [(p, t) for p in PAGES for t in PAGES[p].values()])
def test_the_pages_have_the_tables(page, table):
    assert table() in (ROOT / page).read_text(), "python tools/write_tables.py"


def test_kinds_have_templates_that_there_are():
    assert all(kind.templates in TEMPLATES for kind in KINDS.values())


def test_towers_of_size_b_have_a_configuration_of_every_task():
    for model in ("ViT-B-16-SigLIP2", "PE-Core-B-16", "TIPSv2-B-14"):
        (row,) = (row for row in configs_table().splitlines() if row.startswith(f"| `{model}`"))
        tasks = set(re.findall(r"`(\w+)/", row))
        assert tasks == {"regions", "distill", "zero_shot", "semseg", "detection", "panoptic"}


def test_licences_are_the_publishers_own(weights):
    rows = {row.split(" | ")[0]: row for row in weights.splitlines()}
    assert rows["| `ViT-B-16-SigLIP2`"].endswith("| `webli` | Apache-2.0 (timm) |")
    assert "| CC-BY-NC" in rows["| `ViT-bigG-14-quickgelu`"]
    assert "| Apple's own |" in rows["| `ViT-H-14-378-quickgelu`"]


def test_what_does_not_load_is_named_on_the_page():
    page = (ROOT / "docs/towers.md").read_text()
    families = re.findall("`([^`]+)`", page.partition("## 7. What does not load")[2])
    loaded = set(list_architectures())
    other = set(model_configs()) - loaded
    assert len(families) >= 10
    assert [name for name in sorted(other) if not any(f in name for f in families)] == []
    assert [name for name in sorted(loaded) if any(f in name for f in families)] == []
