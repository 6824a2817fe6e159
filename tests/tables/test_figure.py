"""Figures of tables: a picture has the panels that there are numbers for."""

from __future__ import annotations

import dataclasses

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from clipself_seg.tables.page import _plane, write_figure
from tests.tables.test_sections import followed_section, section_of

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


def test_nothing_measured_is_no_figure(tmp_path):
    assert not write_figure(section_of(tmp_path / "runs", {}), tmp_path)
