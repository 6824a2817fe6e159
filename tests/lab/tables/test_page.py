"""The page of the tables: sections, figures and all formats."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from clipself_seg.errors import InputError
from lab import ROOT
from lab.tables.page import _plane, _series, _style, write_figure, write_page
from lab.tables.runs import resolve
from lab.tables.sections import find_number, make_section, spread_cells
from lab.tables.store import Store
from lab.tables.table import read_table
from tests.lab.tables.worlds import FOLLOWED, TABLE, finish, write_table


def boxes(number):
    return {"mini_val_panoptic": {"64": {"boxes.thing.top1": number}}}


def section_of(folder, numbers, scale="mini"):
    """The section after runs by seed, and of the original, whatever the seed."""
    table = read_table(write_table(folder / "tables"))
    store = Store(folder / "runs")
    runs = {name: [resolve(table.runs[scale], name, 0)] for name in table.shown_runs(scale)}
    if "patches" in runs:
        runs["patches"] = [resolve(table.runs[scale], "patches", seed) for seed in range(3)]
    for name, values in numbers.items():
        for run, value in zip(runs[name], values):
            finish(store, run, boxes(value))
    return make_section(table, scale, runs, store)


def test_rows_claims_commands_and_cost(tmp_path):
    section = section_of(tmp_path, {"original": [20.0], "patches": [70.0, 71.0, 72.0]})
    assert section.headings == ["row", "Boxes: paper", "Boxes: here", "claims"]
    assert section.body == [
        ["original CLIP", "18.2", "20.0", "1 holds"],
        ["CLIPSelf, patches", "72.1", "71.0 ± 1.0", "1 holds"],
    ]
    assert section.claims == [
        ["1. Patches are better.", "the paper's text", "", "", "holds"],
        [
            "Boxes: original CLIP < CLIPSelf, patches",
            "18.2 < 72.1",
            "20.0 < 71.0",
            "+51.0 ± 0.6",
            "holds",
        ],
    ]
    assert section.reasons == [] and [one[1:] for one in section.judged] == [("text", "holds")]
    original, patches = section.commands
    assert original[2:] == ["any", "abc", "123", "1.5"] and patches[2] == "0 1 2"
    assert patches[1].startswith(
        "clipself-seg train --config-file configs/mini/patches.yaml --resume"
    )
    assert " OUTPUT_DIR output/reproduce/" in patches[1] and str(tmp_path) not in patches[1]
    assert sum(section.minutes.values()) == 6


def test_a_claim_that_does_not_hold_or_is_within_noise_says_why(tmp_path):
    section = section_of(tmp_path / "a", {"original": [20.0], "patches": [10.0, 11.0, 12.0]})
    assert section.claims[1][2:] == ["20.0 and 11.0", "-9.0 ± 0.6", "does not hold"]
    assert section.reasons == ["Claim 1 does not hold here: One step is not enough."]
    section = section_of(tmp_path / "b", {"original": [11.0], "patches": [10.0, 11.0, 12.5]})
    assert section.reasons == ["Claim 1 is within noise here: One step is not enough."]


def test_what_was_not_run_or_has_one_seed_says_so(tmp_path):
    section = section_of(tmp_path, {"original": [20.0]})
    assert section.body[1] == ["CLIPSelf, patches", "72.1", "not run", "1 not run"]
    assert section.commands[1][2] == "not run" and section.reasons == []
    section = section_of(tmp_path, {"patches": [70.0]})
    assert section.body[1][2:] == ["70.0", "1 no verdict"]


def test_a_row_that_a_scale_does_not_have_says_so(tmp_path):
    section = section_of(tmp_path, {}, "real")
    assert section.body[1] == ["CLIPSelf, patches", "Boxes", "72.1", "-", "", ""]
    assert section.reasons == ["Not in the real world (for tests). Rows: CLIPSelf, patches"]
    assert len(section.commands) == 1


def followed_section(folder):
    """A section whose rows have numbers of two runs."""
    table = read_table(write_table(folder / "tables", FOLLOWED))
    store = Store(folder / "runs")
    runs = {name: [resolve(table.runs["mini"], name, 0)] for name in table.shown_runs("mini")}
    finish(store, runs["original"][0], boxes(20.0))
    half = {"boxes.thing.top1": 70.0, "alpha_0.5-boxes.thing.top1": 60.0}
    finish(store, runs["patches"][0], {"mini_val_panoptic": {"64": half}})
    finish(store, runs["original pixels"][0], {"mini_val_sem_seg": {"mIoU": 10.0}})
    finish(store, runs["patches pixels"][0], {"mini_val_sem_seg": {"mIoU": 40.0}})
    return make_section(table, "mini", runs, store)


def test_a_row_shows_numbers_and_commands_of_the_run_that_follows_its_own(tmp_path):
    section = followed_section(tmp_path)
    rows = [dict(zip(section.headings, row)) for row in section.body]
    assert [row["Boxes: here"] for row in rows] == ["20.0", "70.0"]
    assert [row["mIoU: here"] for row in rows] == ["10.0", "40.0"]
    # The original's run finished, and has no mixtures.
    assert [row["Boxes, alpha 0.5: here"] for row in rows] == ["-", "60.0"]
    titles = ["original CLIP", "CLIPSelf, patches"]
    named = [title for row in titles for title in (row, f"{row}, pixels")]
    assert [command[0] for command in section.commands] == named
    training, evaluation = section.commands[3][1].split("; then ")
    assert "--resume" in training and "eval --config-file configs/mini/zero_shot.yaml" in evaluation
    assert len(section.minutes) == 4


def test_numbers_of_real_data_stand_beside_the_papers_with_their_spread():
    assert spread_cells(18.2, {None: 18.24}) == ["+0.0", "yes"]
    assert spread_cells(18.2, {None: 19.2}) == ["+1.0", "no seed moves it"]
    assert spread_cells(72.1, {0: 72.0, 1: 73.0}) == ["+0.4", "fewer than 3 seeds"]
    # A standard deviation of 1, and 4.3 times the root of 4/3 of it around 73: 68.03 to 77.97.
    for paper, word in ((68.0, "no"), (68.1, "yes"), (77.9, "yes"), (78.0, "no")):
        assert spread_cells(paper, {0: 72.0, 1: 73.0, 2: 74.0})[1] == word
    assert spread_cells(None, {0: 1.0}) == spread_cells(1.0, {}) == ["", ""]


def test_a_path_has_to_fit_one_number():
    numbers = {"a/160/x": 1.0, "a/64/y": 2.0, "a/64/x": 3.0}
    assert find_number(numbers, "a/*/y") == 2 and find_number(numbers, "a/*") is None
    with pytest.raises(InputError, match=r"a/\*/x fits a/160/x and a/64/x"):
        find_number(numbers, "a/*/x")


def test_the_protocols_of_the_runs_stand_below_the_table_once_for_each_data_set(tmp_path):
    table = read_table(write_table(tmp_path / "tables"))
    store = Store(tmp_path / "runs", tmp_path / "kept")
    runs = {name: [resolve(table.runs["mini"], name, 0)] for name in table.shown_runs("mini")}
    for name, size in (("original", "64 px"), ("patches", "96 px")):
        finish(store, runs[name][0], boxes(20.0))
        path = tmp_path / "runs" / runs[name][0].name / "results.json"
        content = json.loads(path.read_text())
        protocol = {"mini_val_panoptic": {"words": "few", "size": size}}
        path.write_text(json.dumps(content | {"protocol": protocol}))
    section = make_section(table, "mini", runs, Store(tmp_path / "runs", tmp_path / "kept"))
    assert section.protocols == ["Protocol of mini_val_panoptic: words: few | size: 64 px or 96 px"]


NUMBERS = {"original": [20.0], "patches": [10.0, 11.0, 12.0]}


def drawn(section, folder):
    folder.mkdir()
    assert write_figure(section, folder)
    with Image.open(folder / "9.png") as picture:
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
        return picture.size, [tuple(colour) for colour in colours.tolist()]


def test_a_table_without_published_numbers_has_one_panel(tmp_path):
    section = section_of(tmp_path / "runs", NUMBERS)
    rows = {name: dataclasses.replace(row, paper={}) for name, row in section.table.rows.items()}
    bare = dataclasses.replace(section, table=dataclasses.replace(section.table, rows=rows))
    both, here = drawn(section, tmp_path / "both")[0], drawn(bare, tmp_path / "here")[0]
    assert here[0] < both[0] and here[1] == both[1]


@pytest.mark.parametrize("kind", ["bars", "curve"])
def test_a_legend_lies_within_its_figure_and_leaves_the_panels_their_height(
    tmp_path, monkeypatch, kind
):
    section = section_of(tmp_path / "runs", NUMBERS)
    boxes = []

    def save(figure, *_, **__):
        figure.draw_without_rendering()
        (legend,) = figure.legends
        boxes.append((figure.bbox, legend.get_window_extent(), figure.axes[0].bbox.height))

    monkeypatch.setattr(Figure, "savefig", save)
    for words in (1, 20):
        rows = {
            f"{name} {copy}": dataclasses.replace(row, title=f"{copy} " + "long " * words)
            for name, row in section.table.rows.items()
            for copy in range(words)
        }
        cells = {
            (row, column): numbers
            for (name, column), numbers in section.cells.items()
            for row in rows
            if row.startswith(name)
        }
        table = dataclasses.replace(section.table, figure=kind, rows=rows)
        write_figure(dataclasses.replace(section, table=table, cells=cells), tmp_path)
    for figure, legend, _ in boxes:
        assert figure.x0 <= legend.x0 and legend.x1 <= figure.x1
        assert figure.y0 <= legend.y0 and legend.y1 <= figure.y1
    assert boxes[1][2] == pytest.approx(boxes[0][2], rel=0.1)


def test_a_row_has_its_colour_whichever_others_are_measured(tmp_path):
    second = tuple(bytes.fromhex("E69F00"))
    for name, numbers in (("all", NUMBERS), ("one", {"patches": [10.0]})):
        section = section_of(tmp_path / name, numbers)
        rows = list(section.table.rows)
        place = rows.index("patches")
        assert place == 1 and second in drawn(section, tmp_path / f"{name} drawn")[1]


def test_a_plane_has_a_line_for_each_row_through_its_pairs(tmp_path):
    section = followed_section(tmp_path)
    panel = Figure().subplots()
    _plane(panel, section, "here")
    lines = {line.get_label(): line for line in panel.lines if line.get_label()[0] != "_"}
    points = {name: list(zip(line.get_xdata(), line.get_ydata())) for name, line in lines.items()}
    assert points == {
        "original CLIP": [(20.0, 10.0)],
        "CLIPSelf, patches": [(70.0, 40.0), (60.0, 40.0)],
    }
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("Boxes", "mIoU")
    assert len(drawn(section, tmp_path / "drawn")[1]) > 2


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
    assert '<td class=" wrong">✗ does not hold</td>' in html and 'src="9.png"' in html
    latex = (parts / "9.tex").read_text()
    assert "\\toprule" in latex and "11.0 $\\pm$ 1.0" in latex
    with open(parts / "9.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    seeds = [(row["here"], row["seed"]) for row in rows if row["row"] == "CLIPSelf, patches"]
    assert seeds == [("10.0", "0"), ("11.0", "1"), ("12.0", "2")]
    assert (parts / "9.png").stat().st_size > 1000


def test_runs_whose_cost_is_not_known_say_so(tmp_path):
    section = section_of(tmp_path, {"original": [20.0]})
    (name,) = section.minutes
    section.minutes[name] = None
    text = write_page([section], tmp_path / "docs", "mini").read_text()
    assert "1 runs, 0 core-minutes without those of 1 runs, whose system does not say" in text


def test_the_page_begins_with_the_number_of_each_verdict_and_counts_once_what_repeats(tmp_path):
    section = section_of(tmp_path, NUMBERS)
    judged = (
        [("a", "numbers", "holds"), ("b", "text", "does not hold")],
        [("a", "text", "holds"), ("c", "", "not run"), ("b", "", "does not hold")],
    )
    sections = [dataclasses.replace(section, judged=one) for one in judged]
    lines = write_page(sections, tmp_path / "docs", "mini").read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("| inequalities of claims |"))
    headings, _, *counted = (line.split(" | ") for line in lines[begin : begin + 7])
    assert [dict(zip(headings[1:], map(str.strip, line[1:]))) for line in counted] == [
        dict.fromkeys(headings[1:], "") | numbers
        for numbers in (
            {"does not hold": "1", headings[-1]: "1 |"},
            {"holds": "1", "no verdict": "1", headings[-1]: "1 |"},
            {"holds": "1", "does not hold": "1", headings[-1]: "|"},
            {headings[-1]: "1 |"},
            {"no verdict": "1", headings[-1]: "1 |"},
        )
    ]


def test_inequalities_of_the_same_runs_are_the_same_in_whichever_table(tmp_path):
    section = section_of(tmp_path, {})
    for name in ("8", "7"):
        table = dataclasses.replace(section.table, name=name)
        runs = {run: [resolve(table.runs["mini"], run, 0)] for run in table.shown_runs("mini")}
        assert make_section(table, "mini", runs, Store(tmp_path)).judged == section.judged
    (here,), (real,) = section.judged, section_of(tmp_path, {}, "real").judged
    assert here[0] != real[0]


def test_rows_of_other_methods_stand_below_the_others_and_in_no_figure(tmp_path):
    other = 'rows:\n  vild: {title: ViLD, cite: "Gu, ICLR 2021", paper: {boxes: 18.9}}\n'
    table = read_table(write_table(tmp_path / "tables", TABLE.replace("rows:\n", other)))
    store = Store(tmp_path / "runs")
    runs = {name: [resolve(table.runs["mini"], name, 0)] for name in table.shown_runs("mini")}
    finish(store, runs["original"][0], boxes(20.0))
    section = make_section(table, "mini", runs, store)
    assert section.others == [["row", "by", "Boxes"], ["ViLD", "Gu, ICLR 2021", "18.9"]]
    assert [row[0] for row in section.body] == ["original CLIP", "CLIPSelf, patches"]
    assert [title for _, title, _ in _series(section, "paper")] == [row[0] for row in section.body]
    text = write_page([section], tmp_path / "docs", "mini").read_text()
    assert "<summary>Other methods" in text and "| ViLD | Gu, ICLR 2021 | 18.9 |" in text
    for name, cell in (("9.tex", "18.9"), ("9.csv", "ViLD,Boxes,18.9"), ("index.html", "ViLD")):
        assert cell in (tmp_path / "docs/tables" / name).read_text()


def test_rows_that_the_world_lacks_are_counted_by_themselves_and_the_summary_links_to_tables(
    tmp_path,
):
    sections = [section_of(tmp_path, {}, "real")]
    page = write_page(sections, tmp_path / "docs", "real")  # beside that of the mini world
    assert page.name == "tables_real.md" and (tmp_path / "docs/tables_real/9.tex").exists()
    text = page.read_text()
    line = next(line for line in text.splitlines() if line.startswith("| [Table 9"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[0] == "[Table 9](#table-9-a-small-one)"
    assert int(cells[5]) >= 1 and cells[1:4] == ["", "", ""]
    html = (tmp_path / "docs" / "tables_real" / "index.html").read_text()
    assert '<a href="#9">Table 9</a>' in html and '<h2 id="9">' in html


def test_a_page_without_runs_has_the_paper_and_no_figure(tmp_path):
    page = write_page([section_of(tmp_path, {})], tmp_path / "docs", "mini")
    assert "not run" in page.read_text() and "![" not in page.read_text()
    assert not (tmp_path / "docs" / "tables" / "9.png").exists()


def test_the_readme_has_the_numbers_of_the_page():
    lines = (ROOT / "docs/tables.md").read_text().splitlines()
    text, numbers = (
        [int(cell.strip() or 0) for cell in line.split("|")[2:5]]
        for line in lines
        if line.startswith(("| all that the paper's text says |", "| all that its numbers say,"))
    )
    readme = " ".join((ROOT / "README.md").read_text().split())
    holds, fails, noise = text
    assert f"{sum(text)} inequalities of the paper's text run in miniature" in readme
    assert f"{holds} hold, {fails} do not, {noise} are within noise." in readme
    assert (
        f"Of {sum(numbers)} that its numbers alone make, {numbers[0]}, {numbers[1]} and" in readme
    )


def test_no_two_lines_of_a_figure_look_alike():
    styles = [tuple(_style(number).values()) for number in range(24)]
    assert len({*styles}) == 24
