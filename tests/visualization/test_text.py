"""Text in whatever script, and names inside of regions."""

import functools
import logging

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from clipself_seg.visualization import text as texts
from clipself_seg.visualization.text import (
    INSIDE,
    LEAST_TEXT,
    place_names,
    shortened,
    text_length,
    write_names,
    write_text,
)

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
    """Sets the fonts of the machine, and forgets what was there of others, before and after."""

    def install(*paths):
        monkeypatch.setattr(texts, "_fonts", lambda: (DEJAVU, *paths))
        forget()

    def forget():
        texts._line.cache_clear()
        texts._font_with.cache_clear()
        texts._warned.clear()

    yield install
    forget()


def written(text, size=24, **given):
    image = Image.new("RGB", (300, 60), (255, 255, 255))
    write_text(ImageDraw.Draw(image), (20, 30), text, size, (0, 0, 0), **given)
    return np.asarray(image)


def test_latin_and_cyrillic_are_drawn_without_a_font_of_the_machine(machine, caplog):
    machine()
    for text in ("Straße", "красная звезда", "λ, Ł, ş"):
        assert (written(text) != written("?" * len(text))).any()
        assert (written(text) != written(texts.MISSING * len(text))).any()
    assert not caplog.records


def test_what_dejavu_lacks_is_drawn_with_a_font_that_has_it(machine, tmp_path, caplog):
    (tmp_path / "0.ttf").write_bytes(b"no font")
    fonts = [make_font(tmp_path / "a.ttf", "é赤"), make_font(tmp_path / "b.ttf", "赤い星")]
    machine(str(tmp_path / "0.ttf"), str(tmp_path / "none.ttf"), *fonts)
    assert not caplog.records and (written("é") != written("赤")).any()  # which would be a square
    # Three squares of 0.7 by 0.7 on the baseline, 0.9 apart.
    dark = np.argwhere(written("赤い星", 40).min(-1) < 128)
    (top, left), (bottom, right) = dark.min(0), dark.max(0)
    assert bottom - top + 1 == pytest.approx(28, abs=2)
    assert (left, right - left + 1) == pytest.approx((20, 100), abs=2)
    assert text_length("赤い星", 40) == pytest.approx(108, abs=2)


def test_without_any_font_boxes_are_drawn_and_one_warning_says_so(machine, caplog):
    machine()
    with caplog.at_level(logging.WARNING):
        boxes = written("赤い星")
        written("नमस्ते")
    assert (boxes == written(3 * texts.MISSING)).all() and (boxes != written("???")).any()
    (record,) = caplog.records
    assert "赤い星" in record.message and "fonts-noto-cjk" in record.message


def test_any_characters_make_one_line(machine, caplog):
    machine()
    assert (written("dog\nx") == written("dog x")).all()
    assert (written("a\x00b\tc") == written("a b c")).all()
    # Composed, and without what only joins or varies its neighbours.
    assert (written("e\u0301") == written("é")).all()
    assert (written("a\u200d\ufe0fb") == written("ab")).all()
    assert (written("\ud800") == written(texts.MISSING)).all()
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert (written("") == 255).all() and text_length("", 14) == 0


@pytest.mark.parametrize("anchor", ["la", "lm", "ls", "mm", "rs"])
def test_text_stands_where_pillow_puts_it(anchor):
    expected = Image.new("RGB", (300, 60), (255, 255, 255))
    font = ImageFont.truetype(DEJAVU, 24, layout_engine=ImageFont.Layout.BASIC)
    ImageDraw.Draw(expected).text((150, 30), "Ring g", (0, 0, 0), font, anchor)
    image = Image.new("RGB", (300, 60), (255, 255, 255))
    write_text(ImageDraw.Draw(image), (150, 30), "Ring g", 24, (0, 0, 0), anchor)
    places = [np.argwhere(np.asarray(drawn)[..., 0] < 128) for drawn in (image, expected)]
    for ends in zip(*((place.min(0), place.max(0)) for place in places)):
        assert np.abs(ends[0] - ends[1]).max() <= 2  # whose heights are whole pixels, without hints


def test_a_rim_covers_no_letter():
    alone = written("red é") == 0
    rimmed = written("red é", rim=(4, (200, 0, 0)))
    assert alone.any() and (rimmed[alone] == 0).all() and (rimmed == (200, 0, 0)).all(-1).any()


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

    monkeypatch.setattr(texts, "text_length", length)
    for room in (-5, 0, 20, 333, 1500):
        fitting = [n for n in range(1, 300) if text_length(text[:n] + "...", 14) <= room]
        assert shortened(text, 14, room) == text[: max(fitting, default=0)] + "..."
    assert len(looked) <= 5 * 11


def test_upright_fonts_of_usual_weight_come_first_and_one_of_mere_signs_never(monkeypatch):
    entry = functools.partial(font_manager.FontEntry, style="normal", stretch="normal", weight=400)
    others = [entry(fname=f"{name}.ttf", name=name) for name in ("Noto Serif", "Noto Sans CJK JP")]
    others += [entry(fname="bold", name="Noto Sans", weight=700)]
    others += [entry(fname="italic", name="Noto Sans", style="italic")]
    others += [entry(fname="signs", name="Last Resort High-Efficiency")]
    dejavu = entry(fname=DEJAVU, name="DejaVu Sans")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*others, dejavu])
    fonts = texts._fonts.__wrapped__()
    assert fonts == (DEJAVU, "Noto Sans CJK JP.ttf", "Noto Serif.ttf", "bold", "italic")


def extent(name):
    """Half of width and height that a name takes."""
    return text_length(name.text, name.size) / 2, name.size / 2


def covered(labels, name):
    """Share of the name's box that lies in its region."""
    (x, y), (dx, dy) = name.centre, map(int, extent(name))
    return (labels[y - dy : y + dy + 1, x - dx : x + dx + 1] == name.label).mean()


def test_a_name_stands_in_the_middle_of_a_region_with_room():
    labels = np.zeros((101, 201), int)
    (name,) = place_names(labels, ["grass"], 14)
    assert (name.label, name.text, name.size) == (0, "grass", 14)
    assert abs(name.centre[1] - 50) <= 1 and 50 <= name.centre[0] <= 150


@pytest.mark.parametrize("seed", range(4))
def test_names_lie_in_their_regions_and_do_not_touch(seed):
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(-1, 12, (5, 6)), np.ones((60, 60), int))
    placed = place_names(labels, [f"word {i}" for i in range(12)], 16)
    assert placed and len({name.centre for name in placed}) == len(placed)
    written = np.zeros(labels.shape, int)
    for name in placed:
        assert covered(labels, name) >= INSIDE - 0.1
        (x, y), (dx, dy) = name.centre, map(int, extent(name))
        assert dx <= x < labels.shape[1] - dx and dy <= y < labels.shape[0] - dy
        written[y - dy : y + dy, x - dx : x + dx] += 1
    assert written.max() == 1


def test_narrow_regions_have_smaller_names_and_tiny_ones_none():
    labels = np.full((200, 300), -1)
    labels[20:33, 20:150] = 0  # too low for text of 16 pixels
    labels[100:104, 100:104] = 1
    labels[150:190, 20:120] = 2
    placed = {name.text: name.size for name in place_names(labels, ["low", "tiny", "wide"], 16)}
    assert placed == {"low": 12, "wide": 16}
    assert (
        min(place_names(labels, ["low", "", "wide"], 12), key=lambda n: n.size).size >= LEAST_TEXT
    )


def test_a_name_may_stick_out_of_its_region_but_not_onto_another_name():
    labels = np.full((60, 200), -1)
    labels[20:40, 60:110] = 0
    alone = place_names(labels, ["long name", "x"], 14)
    assert [name.label for name in alone] == [0] and covered(labels, alone[0]) < 1
    # A neighbour whose own name fits just there.
    labels[15:45, 40:60] = 1
    labels[15:45, 110:130] = 1
    both = place_names(labels, ["long name", "ab"], 14)
    assert both[0].label == 1


def test_every_large_part_of_a_region_has_the_name_and_small_ones_do_not():
    labels = np.zeros((200, 300), int)
    labels[:, 100:110] = labels[:, 200:210] = 1
    labels[150:190, 250:290] = 1
    labels[155:185, 252:288] = 0  # 1.8 % of the image
    placed = place_names(labels, ["sky", "pole"], 14)
    assert sorted(name.centre[0] // 100 for name in placed if name.label == 0) == [0, 1, 2]
    assert all(covered(labels, name) == 1 for name in placed if name.label == 0)


def test_only_names_that_fit_are_placed_if_none_may_stick_out():
    labels = np.full((60, 200), -1)
    labels[20:40, 60:110] = 0
    labels[5:55, 130:190] = 1
    placed = place_names(labels, ["long name", "x"], 14, whole=True)
    assert [name.text for name in placed] == ["x"]


@pytest.mark.parametrize("height, width", [(1, 1), (3, 500), (500, 3), (1200, 1000)])
def test_any_size_will_do(height, width):
    labels = np.zeros((height, width), np.uint8)
    assert len(place_names(labels, ["sky"], 14)) == (height == 1200)
    assert place_names(labels, [], 14) == []


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_names_show_on_any_ground(ground):
    image = Image.new("RGB", (120, 40), (ground,) * 3)
    write_names(image, place_names(np.zeros((40, 120), int), ["sky"], 16))
    values = np.asarray(image)
    assert (values > 240).any() and (values < 40).any()
