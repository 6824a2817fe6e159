"""Label maps, segments and boxes over images, with names and legends."""

import numpy as np
import pytest
from PIL import Image

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.visualization.colours import class_colours
from clipself_seg.visualization.overlays import (
    LARGE,
    SEEN,
    UNSEEN,
    Entry,
    NameVisualizer,
    Row,
    above_legend,
    box_overlay,
    entries,
    hatched,
    label_overlay,
    label_rows,
    readable,
    tinted,
    write_tiles,
)

NAMES = ("dog", "grass", "sky")
COLOURS = class_colours(NAMES)
GROUND = 128


def pixels_of(colour, picture):
    return (np.asarray(picture) == np.array(colour, np.uint8)).all(axis=-1)


def test_tint_is_a_mixture_and_boundaries_are_light():
    image = np.full((20, 20, 3), 100, np.uint8)
    labels = np.repeat([0, 1], 10)[None].repeat(20, axis=0)
    colours = np.array([[200, 0, 0], [0, 0, 200]], np.uint8)
    painted = tinted(image, labels, colours, opacity=0.5)
    assert painted[5, 2].tolist() == [150, 50, 50] and painted[5, 17].tolist() == [50, 50, 150]
    assert (painted[:, 9] > 190).all() and (image == 100).all()
    assert (tinted(image, labels + 2, colours, opacity=0.5)[5, 2] == 100).all()


@pytest.mark.parametrize("label", [-1, 2, 255])
def test_what_has_no_class_is_darkened_hatched_and_named(label):
    image, labels = np.full((60, 60, 3), 160, np.uint8), np.full((60, 60), label)
    labels[:, :20] = 0
    drawn = hatched(image, labels, 2)
    assert (drawn[:, :20] == 160).all()
    assert 0.5 < (drawn[:, 20:] == 80).all(-1).mean() < 0.95
    # Diagonal: each row is the one above, moved by a pixel.
    assert (drawn[1:, 20:-1] == drawn[:-1, 21:]).all()
    known, missing = entries(labels, NAMES[:2], COLOURS)
    assert missing.name == "no label" and missing.hatched and not known.hatched


def test_legend_lists_what_is_there_by_size_with_its_share():
    labels = np.array([[0, 2, 2, 2, 2], [2, 2, 2, 7, 7]], np.uint8)
    lines = entries(labels, NAMES, COLOURS)
    expected = [("sky", "70.0 %"), ("dog", "10.0 %"), ("no label", "20.0 %")]
    assert [(line.name, line.note) for line in lines] == expected
    assert lines[0].colour == tuple(COLOURS[2])
    labels = np.zeros((100, 100), np.uint8)
    labels[0, 0] = 1
    assert entries(labels, NAMES, COLOURS)[1].note == "< 0.1 %"


def test_long_legends_say_how_much_they_leave_out():
    names = [f"word {i}" for i in range(10)]
    labels = np.arange(10)[None].repeat(2, axis=0)
    lines = entries(labels, names, class_colours(names), most=4)
    assert len(lines) == 4 and (lines[3].name, lines[3].note) == ("7 more", "70.0 %")


def test_a_legend_is_whole_and_names_are_no_formulas():
    drawn = NameVisualizer(np.zeros((60, 80, 3), np.uint8))
    lines = [Entry(name * 20, (200, 0, 0)) for name in ("$\\frac$ ", "_", "long name ")]
    picture = np.asarray(above_legend(drawn, lines))
    assert picture.shape[0] > 100 and picture.shape[1] > 200
    strip = picture[60:]
    assert (strip[:, [0, -1]] == 255).all() and (strip[[0, -1]] == 255).all()
    assert pixels_of((200, 0, 0), strip).sum() > 3 * 50


@pytest.mark.parametrize("height, width", [(1, 1), (3, 500), (500, 3), (40, 60), (700, 900)])
def test_any_size_is_readable(height, width):
    image, labels = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), int)
    labels[:, width // 2 :] = 1
    drawn = label_overlay(image, labels, NAMES, COLOURS)
    assert drawn.width >= width and drawn.height >= height + 14
    assert label_overlay(image, labels, [], COLOURS[:0], False, False).size == (width, height)


def test_large_images_are_reduced():
    image, labels = np.zeros((10, 2 * LARGE + 1, 3), np.uint8), np.zeros((10, 2 * LARGE + 1), int)
    small, reduced = readable(image, labels)
    assert small.shape[:2] == reduced.shape == (4, -(-(2 * LARGE + 1) // 3))


def written(labels, names):
    drawn = NameVisualizer(np.zeros((*labels.shape, 3), np.uint8))
    found = drawn.write_names(labels, names)
    return found, drawn._taken


def test_names_stand_in_their_regions_and_narrow_and_tiny_ones_have_none():
    labels = np.full((200, 300), -1)
    labels[20:24, 20:150] = 0
    labels[100:104, 100:104] = 1
    labels[140:190, 20:120] = 2
    found, (place,) = written(labels, ["narrow", "tiny", "wide"])
    assert found == {2}
    assert 20 < place.x0 < place.x1 < 120 and 140 < place.y0 < place.y1 < 190
    # A ring's middle is not of it.
    ring = np.full((200, 200), 1)
    ring[60:140, 60:140] = 0
    _, places = written(ring, ["in", "ring"])
    assert any(max(abs(p.x0 + p.x1 - 200), abs(p.y0 + p.y1 - 200)) > 100 for p in places)


@pytest.mark.parametrize("seed", range(2))
def test_names_do_not_touch_and_stay_in_the_image(seed):
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(-1, 12, (5, 6)), np.ones((60, 60), int))
    _, places = written(labels, [f"word {i}" for i in range(12)])
    assert len(places) > 5
    assert all(place.count_overlaps(places) == 1 for place in places)
    assert all(p.x0 >= 0 and p.y0 >= 0 and p.x1 <= 360 and p.y1 <= 300 for p in places)


def test_every_large_part_of_a_region_has_the_name_and_small_ones_do_not():
    labels = np.zeros((200, 300), int)
    labels[:, 100:110] = labels[:, 200:210] = 1
    labels[150:190, 250:290] = 1
    labels[155:185, 252:288] = 0  # 1.8 % of the image
    _, places = written(labels, ["sky", "pole"])
    assert sorted(int(place.x0 + place.x1) // 200 for place in places) == [0, 1, 2]


def test_scattered_pixels_are_drawn_as_quickly_as_regions():
    labels = np.zeros((400, 400), int)
    labels[::2, ::2] = 1  # 40,000 parts of one size
    found, places = written(labels, ["ground", "dots"])
    assert len(places) <= 2


def boxes_drawn(seen, masks=None, box=(40, 60, 340, 260), size=(500, 600), names=None):
    image, count = np.full((*size, 3), GROUND, np.uint8), len(seen)
    boxes = np.array([box] * count, np.float32).reshape(-1, 4)
    given = names or ["dog"] * count, np.array(seen, bool), masks
    return np.asarray(box_overlay(image, boxes, np.full(count, 0.5), *given))


def test_boxes_of_seen_classes_are_blue_and_solid_of_unseen_ones_red_and_dashed():
    solid, dashed = boxes_drawn([True]), boxes_drawn([False])
    assert pixels_of(SEEN, solid[259, 41:339]).all()
    assert 0.4 < pixels_of(UNSEEN, dashed[259, 41:339]).mean() < 0.8
    assert not pixels_of(SEEN, dashed[:500]).any()
    assert (solid[110:200, 100:300] == GROUND).all()
    # The best lies on top.
    assert pixels_of(SEEN, boxes_drawn([True, False])[259, 41:339]).all()


def test_names_of_unseen_classes_are_marked_and_true_boxes_have_names_alone():
    image = np.full((500, 600, 3), GROUND, np.uint8)
    widths = []
    for known, scores in ((True, None), (True, np.ones(1)), (False, np.ones(1))):
        given = image, np.array([[40.0, 60, 340, 260]]), scores, ["dog"], np.array([known])
        widths.append((np.asarray(box_overlay(*given))[:56] != GROUND).any((0, 2)).sum())
    assert 0 < widths[0] < widths[1] < widths[2]


def test_a_name_stands_in_its_mask_if_there_is_room_and_else_beside_the_box():
    masks = np.zeros((2, 500, 600), bool)
    masks[0, 80:240, 60:320] = True
    wide = boxes_drawn([True], masks[:1])
    assert (wide[:57] == GROUND).all() and (wide[110:210, 100:280] > 220).all(-1).any()
    tint = [round(0.45 * GROUND + 0.55 * part) for part in SEEN]
    assert wide[85, 70].tolist() == tint and (wide[70, 70] == GROUND).all()
    masks[0, :, 70:] = False
    assert (boxes_drawn([True], masks[:1])[:57] != GROUND).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (40, 60), (900, 20)])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0, 0, 5000, 5000), (0.2, 0.2, 0.4, 0.4)])
def test_any_size_and_any_box_is_drawn(size, box):
    masks = np.ones((2, *size), bool)
    picture = boxes_drawn([True, False], masks, box, size, ["a very long name " * 9, "b"])
    assert picture.shape[1] >= size[1] and picture.shape[0] > size[0]


def test_labels_that_would_hide_those_of_better_boxes_are_left_out():
    drawn = NameVisualizer(np.zeros((500, 600, 3), np.uint8))
    boxes, colours = np.array([[40, 60, 340, 260]] * 30), np.zeros((30, 3), np.uint8)
    drawn.write_boxes(boxes, ["cat"] * 30, colours, np.ones(30, bool), {0})
    places = drawn._taken
    assert 2 <= len(places) == len(drawn.output.ax.texts) <= 4
    assert all(place.count_overlaps(places) == 1 for place in places)


def test_an_image_without_boxes_has_its_legend():
    picture = boxes_drawn([])
    assert (picture[:500] == GROUND).all() and picture.shape[0] > 500


def test_tiles_have_names_and_a_legend_of_all_classes(tmp_path):
    vocabulary = Vocabulary.load("mini")
    names = list(vocabulary.first_names)
    image = np.full((100, 130, 3), 120, np.uint8)
    truth, said = (np.full((100, 130), names.index(name)) for name in ("grass", "water"))
    truth[50:], said[50:] = names.index("sand"), -1
    (row,) = label_rows(vocabulary, [image], {"ground truth": [truth], "model": [said]})
    assert list(row.tiles) == ["image", "ground truth", "model"]
    assert {tile.shape for tile in row.tiles.values()} == {(300, 390, 3)}
    assert {entry.name for entry in row.legend} == {"grass", "sand", "water", "no label"}
    # White letters in either half, and in the half that has a label.
    white = [(row.tiles[t] > 240).all(-1) for t in ("ground truth", "model")]
    assert all(half.sum() > 30 for half in (white[0][:140], white[0][160:], white[1][:140]))
    assert white[1][160:].sum() == 0
    write_tiles([row, Row({"a": image, "b": image, "c": image})], tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").width == 3 * (390 + 8) + 8
