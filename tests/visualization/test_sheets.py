"""Sheets of images, and text in whatever script."""

import functools

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from clipself_seg.visualization import sheets
from clipself_seg.visualization.sheets import families, one_line, sheet

DEJAVU = font_manager.findfont("DejaVu Sans")


def make_font(path, drawn):
    """A font whose characters are filled squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 700), (800, 700), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = {ord(c): f"u{ord(c):X}" for c in drawn}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf(
        {".notdef": TTGlyphPen(None).glyph()} | dict.fromkeys(names.values(), pen.glyph())
    )
    builder.setupHorizontalMetrics({name: (900, 0) for name in (".notdef", *names.values())})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def machine(monkeypatch):
    """Sets the fonts of the machine beside DejaVu Sans, and forgets what was there of others, before and after."""
    entry = functools.partial(font_manager.FontEntry, style="normal", stretch="normal", weight=400)

    def install(*fonts):
        listed = [entry(**font) for font in ({"fname": DEJAVU, "name": "DejaVu Sans"}, *fonts)]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", listed)
        sheets._family_with.cache_clear()

    yield install
    sheets._family_with.cache_clear()


def written(title):
    """The strip of a title above a black image."""
    return np.asarray(sheet([[np.zeros((4, 200, 3), np.uint8)]], [title]))[:24]


def test_what_dejavu_lacks_is_drawn_with_a_font_that_has_it(machine, tmp_path):
    (tmp_path / "0.ttf").write_bytes(b"no font")
    square = make_font(tmp_path / "Squares.ttf", "é赤い")
    machine({"fname": square, "name": "Squares"}, {"fname": str(tmp_path / "0.ttf"), "name": "A"})
    assert families("é") == ["DejaVu Sans"] and families("a赤い") == ["DejaVu Sans", "Squares"]
    # Two squares of 0.7 by 0.7 of 13 pixels.
    dark = np.argwhere(written("赤い").min(-1) < 128)
    assert np.ptp(dark, axis=0) + 1 == pytest.approx((9.1, 20.8), abs=2)


def test_upright_fonts_of_usual_weight_come_first_and_one_of_mere_signs_never(machine, tmp_path):
    font = {"fname": make_font(tmp_path / "a.ttf", "赤")}
    serif, italic = font | {"name": "B"}, font | {"name": "A Sans", "style": "italic"}
    signs = font | {"name": "Last Resort High-Efficiency"}
    machine(signs, italic, serif)
    assert families("赤") == ["DejaVu Sans", "B"]
    machine(signs, italic, serif, font | {"name": "C Sans"})
    assert families("赤") == ["DejaVu Sans", "C Sans"]
    machine(signs)
    assert families("赤") == ["DejaVu Sans"]


def test_without_any_font_something_is_drawn_and_a_warning_names_the_character(machine):
    machine()
    with pytest.warns(UserWarning, match="Glyph 36196"):
        assert (written("赤") != 255).any()


def test_any_characters_make_one_line():
    assert one_line("dog\nx\ty\x00z\ud800") == "dog x y z"
    assert one_line("a" * 40) == "a" * 40 and one_line("a" * 41) == "a" * 37 + "..."
    assert (written("Straße $\\frac$ красная") != written("")).any()
    assert (written("") == 255).all()


def test_a_sheet_holds_every_image_and_its_texts_in_their_columns():
    image = np.full((4, 50, 3), (200, 3, 99), np.uint8)
    drawn = np.asarray(sheet([[image] * 2] * 3, ["W" * 30, "b"], [["W" * 30, ""]] * 3, note="note"))
    assert (drawn == (200, 3, 99)).all(-1).sum() == 6 * 4 * 50
    # Between the columns nothing is written.
    assert (drawn[:-20, 58:66] == 255).all() and (drawn[-20:] != 255).any()
