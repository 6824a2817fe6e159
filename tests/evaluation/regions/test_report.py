"""Tables have the paper's columns, files hold the numbers and where they come from."""

import csv
import json

from matplotlib.figure import Figure
from PIL import Image

from clipself_seg.evaluation.region_report import COLUMNS, plot_size_curve, region_table
from clipself_seg.provenance import read_results, write_results

RESULTS = {"boxes.thing.top1": 72.14, "boxes.thing.top5": 91.3, "images": 5000.0}
RESULTS |= {"masks.thing.top1": 74.4, "masks.thing.top5": 91.8}
RESULTS |= {"masks.stuff.top1": 46.85, "masks.stuff.top5": 80.2}


def cells(table):
    lines = table.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_columns_are_those_of_the_papers_tables():
    head, row = csv.reader(region_table({"a, b": RESULTS}, style="csv").splitlines())
    titles = ("Boxes", "Thing Masks", "Stuff Masks", "Image Crops")
    assert head == ["model", *(f"{title} Top{k}" for title in titles for k in (1, 5))]
    assert row == ["a, b", "72.1", "91.3", "74.4", "91.8", "46.9", "80.2", "-", "-"]


def test_the_best_numbers_are_bold_in_markdown_and_on_a_terminal():
    rows = {"a": RESULTS, "b": RESULTS | {"boxes.thing.top5": 91.34, "masks.thing.top1": 80.0}}
    first, second = cells(region_table(rows, style="github"))[2:]
    assert first[1:5] == ["72.1", "91.3", "74.4", "91.8"]
    assert second[1:5] == ["72.1", "91.3", "**80.0**", "91.8"]
    plain, marked = (region_table(rows, style=style) for style in ("simple", "terminal"))
    assert marked.replace("\033[1m80.0\033[0m", "80.0") == plain != marked


def test_a_table_of_the_papers_columns_fits_a_terminal_of_100_columns():
    best = {f"{key}.top{k}": 100.0 for key in COLUMNS.values() for k in (1, 5)}
    table = region_table({"a": RESULTS, "a name of words": best})
    assert max(map(len, table.splitlines())) <= 100 and "100.0" in table


def test_masked_attention_has_columns_only_if_it_was_read():
    rows = {"a": RESULTS, "b": {"attention_boxes.thing.top1": 30.0}}
    head, _, first, second = cells(region_table(rows, style="github"))
    assert head[-2:] == ["Boxes (masked attention) Top1", "Boxes (masked attention) Top5"]
    assert first[-2:] == ["-", "-"] and second[-2:] == ["30.0", "-"]
    assert len(region_table({}, style="github").splitlines()) == 2


def test_grouping_has_columns_only_if_it_was_measured():
    rows = {"a": RESULTS | {"grouping.purity": 70.04, "grouping.chance": 20.0}}
    head, _, row = cells(region_table(rows, style="github"))
    assert (head[-2:], row[-2:]) == (["Grouping", "at random"], ["70.0", "20.0"])


def test_results_carry_their_provenance(tmp_path):
    write_results(tmp_path / "a" / "results.json", {"regions": RESULTS}, {"seed": 3})
    content = json.loads((tmp_path / "a" / "results.json").read_text())
    assert content == {"results": {"regions": RESULTS}, "provenance": {"seed": 3}}
    assert read_results(tmp_path / "a" / "results.json") == content | {"protocol": {}}
    write_results(tmp_path / "b.json", {}, {}, {"mini": {"words": "a"}})
    assert read_results(tmp_path / "b.json")["protocol"] == {"mini": {"words": "a"}}


def test_the_curve_is_a_plot_with_a_panel_for_each_column(tmp_path):
    curve = {320: RESULTS, 1024: RESULTS}
    plot_size_curve({"before": curve, "after": {640: RESULTS}}, tmp_path / "curve.png")
    plot_size_curve({"before": {320: {"boxes.thing.top1": 1.0}}}, tmp_path / "one.png")
    with Image.open(tmp_path / "curve.png") as three, Image.open(tmp_path / "one.png") as one:
        assert three.size == (3 * one.width, one.height)


def test_all_panels_have_one_scale_that_shows_every_point(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **how: figures.append(self) or save(self, *a, **how)
    )
    results = {"boxes.thing.top1": 20.0, "masks.thing.top1": 50.0, "crops.thing.top1": 100.0}
    plot_size_curve({"model": {320: results, 640: results}}, tmp_path / "curve.png")
    (limits,) = {panel.get_ylim() for panel in figures[0].axes}
    assert limits[0] == 0 and limits[1] >= 100
