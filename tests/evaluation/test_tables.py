"""Tables as text, and in files of LaTeX and CSV."""

from __future__ import annotations

import csv

from clipself_seg.evaluation.tables import FILES, best_marked, format_table, mark_best, write_tables

HEADINGS = ["data set", "50 % & more"]
BODY = [["ade_150 {a}\\b", "1.0 ± 0.1"], ["a, b", "-"]]


def written(folder, name):
    style, file = FILES[name]
    table = format_table(HEADINGS, BODY, style)
    write_tables(folder / file, {"First\none": table, "100 %, second": table}, style)
    return (folder / file).read_text()


def test_latex_is_booktabs_with_everything_escaped(tmp_path):
    text = written(tmp_path, "latex")
    assert text.count("\\toprule") == text.count("\\bottomrule") == 2
    assert "% First one\n\\begin{tabular}{lr}" in text and "\n\n% 100 %, second\n" in text
    assert "50 \\% \\& more" in text and "1.0 $\\pm$ 0.1" in text
    assert "ade\\_150 \\{a\\}\\textbackslash{}b" in text


def test_a_row_that_begins_with_a_bracket_is_no_option_of_the_line_above_it():
    table = format_table(["", "mIoU"], [["[a]", "1.0"], ["*", "2.0"]], "latex_booktabs")
    assert " {[}a]" in table and " {*} " in table


def test_csv_has_the_cells_as_they_are(tmp_path):
    written(tmp_path, "csv")
    with open(tmp_path / "tables.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["First one"], HEADINGS, *BODY, [], ["100 %, second"], HEADINGS, *BODY]


def test_the_best_number_of_a_column_is_marked_where_there_is_a_choice():
    assert best_marked([1.0, 2.04, None, 2.0], "github") == ["1.0", "**2.0**", "-", "**2.0**"]
    assert best_marked([1.0, None], "github") == ["1.0", "-"]
    assert best_marked([1.0, 2.0], "simple") == ["1.0", "2.0"]
    assert best_marked([], "github") == []


def test_the_best_of_each_column_of_cells_is_marked():
    body = [["a", "x", "1.0", "-"], ["b", "x", "2.0", "-"]]
    assert mark_best(body, "github", 2) == [["a", "x", "1.0", "-"], ["b", "x", "**2.0**", "-"]]
    assert mark_best(body, "csv", 2) == body and mark_best([], "github") == []
    html = format_table(["name", "number"], mark_best([["a", "1.0"], ["b", "2.0"]], "html"), "html")
    assert "<b>2.0</b>" in html and "<b>1.0" not in html


def test_notes_stand_below_each_table(tmp_path):
    tables = {"one": format_table(HEADINGS, BODY, "csv"), "two": "a"}
    write_tables(tmp_path / "x.csv", tables, "csv", ["words: pets | size: 8, 9"])
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines.count('"words: pets | size: 8, 9"') == 2 and lines[-1] == lines[len(BODY) + 2]
    write_tables(tmp_path / "x.tex", {"one": "a"}, "latex_booktabs", ["size {8}", "b"])
    assert (tmp_path / "x.tex").read_text() == "% one\na\n% size {8}\n% b\n"
    write_tables(tmp_path / "x.md", {"one": "a"}, "github", ["{} b"])
    assert (tmp_path / "x.md").read_text() == "## one\n\na\n\n{} b\n"
