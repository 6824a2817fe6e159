"""The pages of the tables: sections, figures and the index."""

import dataclasses
import json
import re

import pytest
from matplotlib.figure import Figure

from clipself_seg.errors import InputError
from lab import ROOT
from lab.tables.page import _style, write_figure, write_page
from lab.tables.runs import resolve
from lab.tables.sections import JudgedClaim, find_number, make_section, spread_cells
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
    (claim,) = section.judged
    assert section.reasons == [] and (claim.source, claim.verdict) == ("text", "holds")
    assert [verdict for _, verdict in claim.compared] == ["holds"]
    original, patches = section.commands
    assert re.fullmatch(r"any: [0-9a-f]{12}", original[2]) and original[3:] == ["abc", "123", "1.5"]
    assert re.fullmatch(r"0: [0-9a-f]{12}, 1: [0-9a-f]{12}, 2: [0-9a-f]{12}", patches[2])
    assert " train --config-file configs/mini/patches.yaml --resume" in patches[1]
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


def drawn(section, folder, monkeypatch):
    """Points of each line of a figure by its label, and the panel."""
    panels = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: panels.extend(figure.axes))
    write_figure(section, folder)
    (panel,) = panels
    lines = {line.get_label(): line for line in panel.lines if line.get_label()[0] != "_"}
    return {
        name: list(zip(line.get_xdata(), line.get_ydata())) for name, line in lines.items()
    }, panel


def test_a_curve_has_a_line_for_each_row_over_its_columns(tmp_path, monkeypatch):
    lines, _ = drawn(section_of(tmp_path, NUMBERS), tmp_path, monkeypatch)
    assert lines == {"original CLIP": [("Boxes", 20.0)], "CLIPSelf, patches": [("Boxes", 11.0)]}
    lines, panel = drawn(section_of(tmp_path / "b", {"patches": [1.0]}), tmp_path, monkeypatch)
    # A row looks the same whichever others are measured.
    assert [*lines] == ["CLIPSelf, patches"] and panel.lines[0].get_color() == _style(1)["color"]


def test_a_plane_has_a_line_for_each_row_through_its_pairs(tmp_path, monkeypatch):
    lines, panel = drawn(followed_section(tmp_path), tmp_path, monkeypatch)
    assert lines == {
        "original CLIP": [(20.0, 10.0)],
        "CLIPSelf, patches": [(70.0, 40.0), (60.0, 40.0)],
    }
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("Boxes", "mIoU")


def test_a_page_has_the_numbers_and_the_index_leads_to_it(tmp_path):
    section = section_of(tmp_path, NUMBERS)
    index = write_page([section], tmp_path / "docs", "mini")
    assert index == tmp_path / "docs" / "tables" / "index.md"
    text = index.with_name("9.md").read_text()
    assert text.startswith("# Table 9: a small one\n")
    assert "| CLIPSelf, patches | 72.1 | 11.0 ± 1.0 | 1 does not hold |" in text
    assert "**does not hold**" in text and "One step is not enough." in text
    assert "![Table 9: a small one](9.png)" in text
    assert index.with_name("9.png").stat().st_size > 1000
    text = index.read_text()
    assert "4 runs, 6 core-minutes" in text and "| [Table 9](9.md) |" in text


def judge(compared, source, verdict, number=1):
    return JudgedClaim(number, f"{compared}.", source, verdict, ((compared, verdict),))


def test_the_page_begins_with_the_claims_and_names_those_that_do_not_hold(tmp_path):
    section = section_of(tmp_path, NUMBERS)
    judged = (
        [judge("a", "text", "holds"), judge("b", "text", "does not hold", 2)],
        [judge("a", "text", "holds"), judge("c", "numbers", "does not hold")],
        [judge("d", "text", "does not hold in print"), judge("e", "", "does not hold")],
    )
    sections = [dataclasses.replace(section, judged=one) for one in judged]
    text = write_page(sections, tmp_path / "docs", "mini").read_text()
    said = "3 claims of the paper's text: holds 1, does not hold 1, does not hold in print 1."
    assert text.split("\n\n")[1] == said
    named = ["* [Table 9](9.md), claim 2: b.", "* [Table 9](9.md), claim 1: d. (In print.)"]
    assert [line for line in text.splitlines() if line.startswith("* ")] == named


def test_the_page_counts_the_verdicts_of_inequalities_and_counts_once_what_repeats(tmp_path):
    section = section_of(tmp_path, NUMBERS)
    judged = (
        [judge("a", "numbers", "holds"), judge("b", "text", "does not hold")],
        [judge("a", "text", "holds"), judge("c", "", "not run"), judge("b", "", "does not hold")],
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
    assert here.compared[0][0] != real.compared[0][0]


def test_rows_of_other_methods_stand_below_the_others_and_in_no_figure(tmp_path):
    other = 'rows:\n  vild: {title: ViLD, cite: "Gu, ICLR 2021", paper: {boxes: 18.9}}\n'
    table = read_table(write_table(tmp_path / "tables", TABLE.replace("rows:\n", other)))
    store = Store(tmp_path / "runs")
    runs = {name: [resolve(table.runs["mini"], name, 0)] for name in table.shown_runs("mini")}
    finish(store, runs["original"][0], boxes(20.0))
    section = make_section(table, "mini", runs, store)
    assert section.others == [["row", "by", "Boxes"], ["ViLD", "Gu, ICLR 2021", "18.9"]]
    assert [row[0] for row in section.body] == ["original CLIP", "CLIPSelf, patches"]
    text = write_page([section], tmp_path / "docs", "mini").with_name("9.md").read_text()
    assert "<summary>Other methods" in text and "| ViLD | Gu, ICLR 2021 | 18.9 |" in text


def test_pages_of_real_data_are_beside_the_others_and_count_what_the_world_lacks(tmp_path):
    index = write_page([section_of(tmp_path, {}, "real")], tmp_path / "docs", "real")
    assert index == tmp_path / "docs/tables_real/index.md" and index.with_name("9.md").exists()
    line = next(line for line in index.read_text().splitlines() if line.startswith("| [Table 9"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert int(cells[5]) >= 1 and cells[1:4] == ["", "", ""]


def test_tables_of_somebody_elses_are_not_called_the_papers(tmp_path):
    section = section_of(tmp_path, {})
    own = dataclasses.replace(section, table=dataclasses.replace(section.table, name="mine"))
    for sections, title in (
        ([own], "Tables in miniature"),
        ([section, own], "The paper's tables in miniature"),
    ):
        text = write_page(sections, tmp_path / "docs", "mini").read_text()
        assert text.startswith(f"# {title}\n") and ("of the CLIPSelf paper" in text) == (
            title[1] == "h"
        )


def test_a_page_without_runs_has_the_paper_and_no_figure(tmp_path):
    page = write_page([section_of(tmp_path, {})], tmp_path / "docs", "mini").with_name("9.md")
    assert "not run" in page.read_text() and "![" not in page.read_text()
    assert not page.with_name("9.png").exists()


def test_the_readme_has_the_numbers_of_the_page():
    text = (ROOT / "docs/tables/index.md").read_text()
    claims, counted = re.search(r"^(\d+) claims of the paper's text: (.+)\.$", text, re.M).groups()
    numbers = dict(re.match(r"(.+) (\d+)$", part).groups() for part in counted.split(", "))
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert (
        f"{claims} claims of the paper's text: {numbers['holds']} hold in miniature, "
        f"{numbers['does not hold']} do not, {numbers['within noise']} are within noise, "
        f"{numbers['not measured']} are not measured; of those about printed numbers of other methods "
        f"{numbers['holds in print']} hold and {numbers['does not hold in print']} does not"
    ) in readme


def test_a_claim_that_a_reader_recomputes_is_that_of_the_page(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```python\n(.+?)```", (ROOT / "docs/numbers.md").read_text(), re.S)
    exec(block, {})
    difference, verdict = capsys.readouterr().out.strip().split(": ")
    row = r"^\| Boxes Top1: original CLIP < M = 6 .+ \| (.+) \| (.+) \|$"
    page = (ROOT / "docs/tables/1a.md").read_text()
    assert re.search(row, page, re.M).groups() == (difference, verdict)


def test_no_two_lines_of_a_figure_look_alike():
    styles = [tuple(_style(number).values()) for number in range(24)]
    assert len({*styles}) == 24
