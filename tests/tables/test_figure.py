"""Figures of tables: a picture has the panels that there are numbers for."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from clipself_seg.tables.figure import write_figure
from tests.tables.test_sections import section_of

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


def test_nothing_measured_is_no_figure(tmp_path):
    assert not write_figure(section_of(tmp_path / "runs", {}), tmp_path)
