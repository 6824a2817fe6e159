"""The strip of photographs: a row for each, its tiles side by side below its words."""

from __future__ import annotations

import numpy as np
from photograph_strip import GAP, LINE, TILE, strip
from PIL import Image


def test_every_tile_is_in_its_row_and_column():
    colours = [[(10 * row + 1, 10 * column + 1, 200) for column in range(4)] for row in range(2)]
    rows = [("a, b", [Image.new("RGB", (TILE, 90), c) for c in row]) for row in colours]
    drawn = np.asarray(strip(rows))
    assert drawn.shape == (LINE + 2 * (LINE + 90) + GAP, 4 * (TILE + GAP) + GAP, 3)
    for row, top in enumerate((2 * LINE, 3 * LINE + 90)):
        for column in range(4):
            left = GAP + column * (TILE + GAP)
            assert (drawn[top : top + 90, left : left + TILE] == colours[row][column]).all()
