"""The page in its formats."""

from __future__ import annotations

import csv

from clipself_seg.tables.page import write_page
from tests.tables.test_sections import section_of

NUMBERS = {"original": [20.0], "patches": [10.0, 11.0, 12.0]}


def test_all_formats_have_the_numbers(tmp_path):
    section = section_of(tmp_path, NUMBERS)
    page = write_page([section], tmp_path / "docs", "mini")
    text = page.read_text()
    assert page == tmp_path / "docs" / "tables.md" and "## Table 9: a small one" in text
    assert "| CLIPSelf, patches | 72.1 | 11.0 ± 1.0 | 1 does not hold |" in text
    assert "**does not hold**" in text and "One step is not enough." in text
    assert "![Table 9: a small one](tables/9.png)" in text and "4 runs, 6 core-minutes" in text
    parts = tmp_path / "docs" / "tables"
    html = (parts / "index.html").read_text()
    assert '<td class="left text wrong">✗ does not hold</td>' in html and 'src="9.png"' in html
    latex = (parts / "9.tex").read_text()
    assert "\\toprule" in latex and "11.0 $\\pm$ 1.0" in latex
    with open(parts / "9.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["here"], row["seed"]) for row in rows if row["row"] == "CLIPSelf, patches"] == [
        ("10.0", "0"),
        ("11.0", "1"),
        ("12.0", "2"),
    ]
    assert (parts / "9.png").stat().st_size > 1000


def test_runs_whose_cost_is_not_known_say_so(tmp_path):
    section = section_of(tmp_path, {"original": [20.0]})
    (name,) = section.minutes
    section.minutes[name] = None
    text = write_page([section], tmp_path / "docs", "mini").read_text()
    assert "1 runs, 0 core-minutes without those of 1 runs, whose system does not say" in text


def test_the_page_begins_with_the_number_of_each_verdict(tmp_path):
    sections = [section_of(tmp_path / "a", NUMBERS), section_of(tmp_path / "b", {})]
    lines = write_page(sections, tmp_path / "docs", "mini").read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("| inequalities of claims |"))
    counted = [
        [int(cell.strip() or 0) for cell in lines[begin + 2 + k].split("|")[2:-1]] for k in range(3)
    ]
    first, second, every = counted
    assert (
        first[1] >= 1
        and first[3:] == [0, 0]
        and second[:3] == [0, 0, 0]
        and second[3] == sum(first)
    )
    assert every == [one + two for one, two in zip(first, second)]


def test_rows_that_the_world_lacks_are_counted_by_themselves_and_the_summary_links_to_tables(
    tmp_path,
):
    sections = [section_of(tmp_path, {}, "real")]
    text = write_page(sections, tmp_path / "docs", "real").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| [Table 9"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[0] == "[Table 9: a small one](#table-9-a-small-one)"
    assert int(cells[5]) >= 1 and cells[1:4] == ["", "", ""]
    html = (tmp_path / "docs" / "tables_real" / "index.html").read_text()
    assert '<a href="#9">Table 9: a small one</a>' in html and '<h2 id="9">' in html


def test_a_page_without_runs_has_the_paper_and_no_figure(tmp_path):
    page = write_page([section_of(tmp_path, {})], tmp_path / "docs", "mini")
    assert "not run" in page.read_text() and "![" not in page.read_text()
    assert not (tmp_path / "docs" / "tables" / "9.png").exists()


def test_the_page_of_real_data_stands_beside_the_other(tmp_path):
    page = write_page([section_of(tmp_path, {}, "real")], tmp_path, "real")
    assert page.name == "tables_real.md" and (tmp_path / "tables_real" / "9.tex").exists()
