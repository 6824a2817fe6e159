"""Numbers of README and docs are those of the records that are kept of them."""

import re
from datetime import datetime, timedelta

import pytest
from write_tables import with_seconds

from bench import jobs
from clipself_seg.files import read_json
from clipself_seg.training.metrics import flatten_numbers
from tests.conftest import ROOT

QUICKSTART = "docs/quickstart.md"


def numbers(row: str) -> set[str]:
    """Those with a decimal, behind the first cell."""
    return set(re.findall(r"\d+\.\d", row.split("|", 2)[2]))


def rows(page: str) -> list[str]:
    return [row for row in (ROOT / page).read_text().splitlines() if row.startswith("| ")]


@pytest.mark.parametrize(
    ("page", "first", "count", "table"),
    [
        ("README.md", "| original | 21", 3, "objectives"),
        ("docs/objectives.md", "| original | 21", 7, "objectives"),
        ("docs/finetuning.md", "| before | ", 8, "finetuning"),
    ],
)
def test_a_row_is_one_of_the_generated_table(page, first, count, table):
    here, there = rows(page), [*map(numbers, rows(f"docs/tables/{table}.md"))]
    (begin,) = (place for place, row in enumerate(here) if row.startswith(first))
    for row in here[begin : begin + count]:
        assert len(numbers(row)) >= 3 and any(numbers(row) <= own for own in there), row


@pytest.mark.parametrize(
    ("page", "row", "record"),
    [
        (QUICKSTART, "original CLIP | 21", "regions-4ddd1dec323b"),
        (QUICKSTART, "patches, live", "patches_seed0-d7522e9be34e"),
        (QUICKSTART, "proposals, live", "proposals_seed0-65c8df957da9"),
        (QUICKSTART, "patches, shipped", "regions-a8fbb1e96795"),
        (QUICKSTART, "original CLIP | 9", "zero_shot-7f90d75547a8"),
        (QUICKSTART, "original CLIP, values", "zero_shot-0f8bf15ad4f5"),
        (QUICKSTART, "CLIPSelf | ", "zero_shot-70644623292a"),
        ("docs/distillation.md", "original | 93", "whole_images-d3a665f54f0f"),
        ("docs/distillation.md", "CLIPSelf by patches, s", "whole_images-85caa951fe50"),
        ("docs/distillation.md", "CLIPSelf by proposals, s", "whole_images-78918d98021d"),
    ],
)
def test_a_row_is_that_of_one_record(page, row, record):
    results = read_json(ROOT / f"docs/tables/runs/{record}.json")["results"]
    measured = {f"{number:.1f}" for _, number in flatten_numbers(results)}
    (own,) = (own for own in rows(page) if own.startswith(f"| {row}"))
    assert numbers(own) and numbers(own) <= measured


@pytest.mark.parametrize(
    ("page", "begin", "record", "count"),
    [
        ("fig1a", "`mini-large`, as it comes", "longer_training", 2),
        ("fig1b", "When they are shrunk", "shrunk_scenes", 4),
        ("A1", "When they are shrunk", "shrunk_scenes", 4),
    ],
)
def test_a_reason_that_was_tested_has_its_record(page, begin, record, count):
    results = read_json(ROOT / f"docs/measured/{record}.json")["results"]
    text = (ROOT / f"docs/tables/{page}.md").read_text()
    (said,) = re.findall(rf"{begin}.*?\(docs/measured/{record}", text)
    measured = {f"{number:.1f}" for _, number in flatten_numbers(results)}
    assert len(measured & set(re.findall(r"\d+\.\d", said))) == count


def test_the_seconds_of_readme_are_those_that_were_measured():
    readme = (ROOT / "README.md").read_text()
    assert with_seconds(readme) == readme, "python tools/write_tables.py"


def test_the_table_of_speed_is_that_of_one_sitting():
    record = read_json(ROOT / "docs/measured/speed.json")["jobs"]
    origins = [of["provenance"] for of in record.values()]
    assert len({(of["device"], of["torch"]) for of in origins}) == 1
    assert not any("dirty" in of["commit"] for of in origins)
    first, *_, last = sorted(datetime.fromisoformat(of["date"]) for of in origins)
    assert last - first < timedelta(hours=2)
    rows = {f"{job.label}: {row}" for job in jobs.JOBS for row in job.rows}
    assert read_json(jobs.OFFICIAL)["jobs"].keys() < rows
