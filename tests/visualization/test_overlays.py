"""Tinted label maps, legends, panoptic segments and colours."""

import numpy as np
import pytest

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.visualization import class_colours as colours_module
from clipself_seg.visualization.class_colours import BACKGROUND, class_colours
from clipself_seg.visualization.overlays import (
    Entry,
    colour_ids,
    entries,
    legend,
    overlay,
    paint,
    panoptic_overlay,
    percent,
    segment_colours,
    segment_names,
    text_size,
)

NAMES = ("dog", "grass", "sky")


def apart(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CIELAB distances and differences of lightness of all pairs."""
    lab = colours_module._to_lab(colours)
    differences = (lab[:, None] - lab[None])[np.triu_indices(len(lab), 1)]
    return np.linalg.norm(differences, axis=-1), abs(differences[:, 0])


def test_few_colours_are_far_apart_and_many_are_all_different():
    words = ["dog", "cat", "car", "wall", "lamp", "bed", "cup", "tie", "book", "oven"]
    assert apart(class_colours(words))[0].min() > 35
    names = Vocabulary.load("ade20k_847").first_names
    assert len(np.unique(class_colours(names), axis=0)) == len({n.strip().lower() for n in names})


@pytest.mark.parametrize(("vocabulary", "fraction"), [("mini", 0.03), ("voc_20", 0.0)])
def test_few_colours_are_alike_in_hue_and_lightness(vocabulary, fraction):
    distance, lightness = apart(class_colours(Vocabulary.load(vocabulary).first_names))
    assert ((distance < 30) & (lightness < 5)).mean() <= fraction


def test_expected_colours_give_way_in_lightness_and_not_in_hue():
    names = Vocabulary.load("mini").first_names
    for name, (red, green, blue) in zip(names, class_colours(names).astype(int)):
        if name.startswith("blue"):
            assert blue > max(red, green), name
        if name.startswith("green") or name == "grass":
            assert green > max(red, blue), name
        if name.startswith(("red", "yellow")) or name in ("sand", "wood"):
            assert red > blue + 40, name


def test_colours_of_more_names_than_candidates_come_again(monkeypatch):
    rgb, lab = colours_module._candidates()
    monkeypatch.setattr(colours_module, "_candidates", lambda: (rgb[:5], lab[:5]))
    colours = class_colours([f"word {number}" for number in range(12)])
    assert sorted(np.unique(colours, axis=0, return_counts=True)[1]) == [2, 2, 2, 3, 3]


def test_colours_follow_the_name_and_not_its_place():
    there, back = class_colours(NAMES), class_colours(NAMES[::-1])
    assert (there == back[::-1]).all()
    assert (class_colours(["Dog", " grass"]) == there[:2]).all()


def test_background_is_grey_sky_is_blue_and_grass_green():
    grey, sky, grass = class_colours(["background", "sky-other", "grass"]).astype(int)
    assert tuple(grey) == BACKGROUND
    assert sky.argmax() == 2 and grass.argmax() == 1
    red, purple = class_colours(["red star", "purple ring"]).astype(int)
    assert red.argmax() == 0 and red[0] > 2 * red[2] and purple.argmax() == 2
    assert class_colours([]).shape == (0, 3)


def test_tint_is_a_mixture_and_boundaries_are_light():
    image = np.full((20, 20, 3), 100, np.uint8)
    labels = np.repeat([0, 1], 10)[None].repeat(20, axis=0)
    colours = np.array([[200, 0, 0], [0, 0, 200]], np.uint8)
    painted = paint(image, labels, colours, opacity=0.5)
    assert painted[5, 2].tolist() == [150, 50, 50] and painted[5, 17].tolist() == [50, 50, 150]
    assert (painted[:, 9] > 190).all() and (image == 100).all()


@pytest.mark.parametrize("label", [-1, 2, 255])
def test_what_has_no_class_is_darkened_hatched_and_named(label):
    image, labels = np.full((60, 60, 3), 160, np.uint8), np.full((60, 60), label)
    image[30:] = 0
    labels[:, :20] = 0
    colours = class_colours(NAMES[:2])
    painted = paint(image, labels, colours, opacity=1)
    plain, bright, black = painted[3:57, 2:17], painted[:29, 22:], painted[31:, 22:]
    assert (plain == colours[0]).all()
    # The image shows between the lines, and the lines on a black image.
    assert 0.5 < (bright == 80).all(-1).mean() < 0.95 and bright.max() > 120
    assert 0.5 < (black == 0).all(-1).mean() < 0.95 and black.max() > 90
    # Diagonal: each row is the one above, moved by a pixel.
    assert (bright[1:, :-1] == bright[:-1, 1:]).all()
    known, missing = entries(labels, NAMES[:2], colours)
    assert missing.name == "no label" and missing.hatched and not known.hatched


def test_the_legend_hatches_its_swatch_too():
    swatches = [
        np.asarray(legend([Entry("x", (25, 25, 25), hatched=hatched)], 100, 20))[:, :30]
        for hatched in (False, True)
    ]
    dark = [(swatch == 25).all(-1).sum() for swatch in swatches]
    assert 0.4 * dark[0] < dark[1] < 0.8 * dark[0]
    assert (np.ptp(swatches[1], axis=-1) == 0).all()  # grey


def test_legend_lists_what_is_there_by_size_with_its_share():
    labels = np.array([[0, 2, 2, 2, 2], [2, 2, 2, 7, 7]], np.uint8)
    lines = entries(labels, NAMES, class_colours(NAMES))
    assert [(e.name, e.note) for e in lines] == [
        ("sky", "70.0 %"),
        ("dog", "10.0 %"),
        ("no label", "20.0 %"),
    ]
    assert lines[0].colour == tuple(class_colours(NAMES)[2])
    assert percent(0.0001) == "< 0.1 %" and percent(1) == "100.0 %"


def test_long_legends_say_how_much_they_leave_out():
    names = [f"word {i}" for i in range(10)]
    labels = np.arange(10)[None].repeat(2, axis=0)
    lines = entries(labels, names, class_colours(names), most=4)
    assert len(lines) == 4 and (lines[3].name, lines[3].note) == ("7 more", "70.0 %")
    long = entries(labels, ["a very long name " * 20] * 10, class_colours(names))
    strip = legend(long, 200, 14)
    assert strip.width == 200 and (np.asarray(strip)[:, -3:] == 255).all()


@pytest.mark.parametrize("height, width", [(1, 1), (3, 500), (500, 3), (40, 60), (700, 900)])
def test_any_size_is_readable(height, width):
    image, labels = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), int)
    labels[:, width // 2 :] = 1
    drawn = overlay(image, labels, NAMES, class_colours(NAMES))
    assert drawn.width >= max(width, 250) and drawn.height >= height + 14
    assert text_size(image) >= 14 and text_size(np.zeros((3000, 4000))) == 100


COLOURS = class_colours(NAMES)


def test_segments_of_one_class_are_counted():
    assert segment_names(["dog", "sky", "dog"]) == ["dog 1", "sky", "dog 2"]
    assert segment_names([]) == []


def test_the_first_segment_has_the_colour_of_its_class_and_all_differ():
    colours = segment_colours(COLOURS[[0, 1, 0, 0, 2]])
    assert (colours[[0, 1, 4]] == COLOURS).all()
    many = segment_colours(np.repeat(COLOURS, 100, axis=0))
    assert len(np.unique(many, axis=0)) == 300


def test_neighbours_in_the_list_of_a_class_can_be_told_apart():
    dogs = segment_colours(COLOURS[[0] * 6]).astype(int)
    apart = np.abs(dogs[:, None] - dogs[None]).sum(-1)[~np.eye(6, dtype=bool)]
    assert apart.min() > 40


def test_black_and_white_are_nobodys_and_equal_colours_are_parted():
    edge = np.array([[0, 0, 0], [255, 255, 255], [9, 9, 9], [9, 9, 9]], np.uint8)
    numbers = colour_ids(segment_colours(edge))
    assert len(set(numbers.tolist())) == 4 and 0 < numbers.min() and numbers.max() < 2**24 - 1
    assert colour_ids(np.array([1, 2, 3])) == 1 + 2 * 256 + 3 * 65536
    assert segment_colours(np.zeros((0, 3), np.uint8)).shape == (0, 3)


@pytest.mark.parametrize("height, width", [(1, 1), (40, 60), (300, 500)])
def test_every_segment_is_tinted_and_listed(height, width):
    image = np.full((height, width, 3), 200, np.uint8)
    labels = np.arange(width)[None].repeat(height, axis=0) * 4 // width - 1
    drawn = panoptic_overlay(image, labels, [0, 0, 2], NAMES, COLOURS)
    assert drawn.width >= width and drawn.height > height
    colours = {tuple(c) for c in segment_colours(COLOURS[[0, 0, 2]])}
    there = {tuple(pixel) for pixel in np.asarray(drawn).reshape(-1, 3)}
    listed = set(labels[labels >= 0].tolist())
    assert len(colours & there) == len(listed)


def test_a_picture_without_segments_is_drawn():
    image = np.full((30, 40, 3), 200, np.uint8)
    drawn = panoptic_overlay(image, np.full((30, 40), -1), [], NAMES, COLOURS)
    dark = (np.asarray(drawn)[:240, :320] == 100).all(-1)
    assert 0.5 < dark.mean() < 1  # under the lines
