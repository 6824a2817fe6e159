"""Text in any script: DejaVu, then fonts of the machine, then a box; one baseline, and no crash."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw

from clipself_seg.visualization import fonts
from clipself_seg.visualization.fonts import shortened, text_length, write_text


def make_font(path, drawn, blank=""):
    """A font whose characters are filled squares, or blank as those of coloured fonts are to Pillow."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 700), (800, 700), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = {ord(c): f"u{ord(c):X}" for c in drawn + blank}
    glyphs = {name: TTGlyphPen(None).glyph() for name in [".notdef", *names.values()]}
    glyphs |= dict.fromkeys((names[ord(c)] for c in drawn), pen.glyph())
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (900, 0) for name in glyphs})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def machine(monkeypatch):
    """Sets the fonts of the machine, and forgets what was there of others, before and after."""

    def install(*paths):
        monkeypatch.setattr(fonts, "machine_fonts", lambda: paths)
        forget()

    def forget():
        fonts._runs.cache_clear()
        fonts._font_with.cache_clear()
        fonts._warned.clear()

    yield install
    forget()


def written(text, size=24, **given):
    image = Image.new("RGB", (300, 60), (255, 255, 255))
    write_text(ImageDraw.Draw(image), (20, 30), text, size, (0, 0, 0), **given)
    return np.asarray(image)


def test_latin_and_cyrillic_are_drawn_without_a_font_of_the_machine(machine, caplog):
    machine()
    for text in ("Straße", "красная звезда", "λ, Ł, ş"):
        assert {path for path, _ in fonts._runs(text)} == {fonts._dejavu()}
        assert (written(text) != written("?" * len(text))).any()
        assert fonts.MISSING not in "".join(part for _, part in fonts._runs(text))
    assert not caplog.records


def test_what_dejavu_lacks_is_drawn_with_a_font_that_has_it(machine, tmp_path, caplog):
    other = make_font(tmp_path / "a.ttf", "é赤")
    ours = make_font(tmp_path / "b.ttf", "赤い星")
    (tmp_path / "0.ttf").write_bytes(b"no font")
    machine(str(tmp_path / "0.ttf"), other, ours)
    assert fonts._runs("é 赤い星 x") == (
        (fonts._dejavu(), "é "),
        (other, "赤"),
        (ours, "い星"),
        (fonts._dejavu(), " x"),
    )
    assert not caplog.records
    # Three squares of 0.7 by 0.7 on the baseline, 0.9 apart.
    dark = np.argwhere(written("赤い星", 40).min(-1) < 128)
    (top, left), (bottom, right) = dark.min(0), dark.max(0)
    assert bottom - top + 1 == pytest.approx(28, abs=2)
    assert (left, right - left + 1) == pytest.approx((20, 100), abs=2)
    assert text_length("赤い星", 40) == pytest.approx(108, abs=2)


def test_a_font_that_draws_nothing_is_passed_over(machine, tmp_path):
    coloured, plain = make_font(tmp_path / "a.ttf", "赤", "星"), make_font(tmp_path / "b.ttf", "星")
    machine(coloured, plain)
    assert fonts._runs("星") == ((plain, "星"),)


def test_without_any_font_boxes_are_drawn_and_one_warning_says_so(machine, caplog):
    machine()
    with caplog.at_level(logging.WARNING):
        boxes = written("赤い星")
        written("नमस्ते")
    assert (boxes == written(3 * fonts.MISSING)).all() and (boxes != written("???")).any()
    (record,) = caplog.records
    assert "赤い星" in record.message and "fonts-noto-cjk" in record.message


def test_any_characters_make_one_line(machine, caplog):
    machine()
    assert (written("dog\nx") == written("dog x")).all()
    assert (written("a\x00b\tc") == written("a b c")).all()
    # Composed, and without what only joins or varies its neighbours.
    assert (written("e\u0301") == written("é")).all()
    assert (written("a\u200d\ufe0fb") == written("ab")).all()
    assert (written("\ud800") == written(fonts.MISSING)).all()
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert (written("") == 255).all() and text_length("", 14) == 0


@pytest.mark.parametrize("anchor", ["la", "lm", "ls", "mm", "rs"])
def test_text_stands_where_pillow_puts_it(anchor):
    expected = Image.new("RGB", (300, 60), (255, 255, 255))
    font = fonts._font(fonts._dejavu(), 24)
    ImageDraw.Draw(expected).text((150, 30), "Ring g", (0, 0, 0), font, anchor)
    image = Image.new("RGB", (300, 60), (255, 255, 255))
    write_text(ImageDraw.Draw(image), (150, 30), "Ring g", 24, (0, 0, 0), anchor)
    places = [np.argwhere(np.asarray(drawn)[..., 0] < 128) for drawn in (image, expected)]
    for ends in zip(*((place.min(0), place.max(0)) for place in places)):
        assert np.abs(ends[0] - ends[1]).max() <= 1


def test_a_rim_covers_no_letter(machine, tmp_path):
    machine(make_font(tmp_path / "a.ttf", "赤"))
    alone = written("赤") == 0
    rimmed = written("赤é赤", rim=(4, (200, 0, 0)))
    assert (rimmed[alone] == 0).all() and (rimmed == (200, 0, 0)).all(-1).any()


def test_texts_are_shortened_to_a_width():
    assert shortened("grass", 14, 1000) == "grass"
    short = shortened("a very long name", 14, 80)
    assert short.startswith("a v") and short.endswith("...") and text_length(short, 14) <= 80


def test_a_long_text_is_shortened_in_few_looks(monkeypatch):
    text = "a long name of a class, AV To " * 10
    looked = []

    def length(part, size):
        looked.append(part)
        return text_length(part, size)

    monkeypatch.setattr(fonts, "text_length", length)
    for room in (-5, 0, 20, 333, 1500):
        fitting = [n for n in range(1, 300) if text_length(text[:n] + "...", 14) <= room]
        assert shortened(text, 14, room) == text[: max(fitting, default=0)] + "..."
    assert len(looked) <= 5 * 11


def test_upright_fonts_of_usual_weight_come_first_and_one_of_mere_signs_never(monkeypatch):
    files = ["LastResort.otf", "NotoSansCJK-Bold.ttc", "NotoSerif.ttf", "NotoSansCJK-Regular.ttc"]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    first, *others = fonts.machine_fonts.__wrapped__()
    assert first == files[3] and sorted(others) == files[1:3]
