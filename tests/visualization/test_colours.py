"""Colours of classes and of segments."""

import numpy as np
import pytest

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.visualization import colours as colours_module
from clipself_seg.visualization.colours import (
    BACKGROUND,
    class_colours,
    colour_ids,
    segment_colours,
    segment_names,
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
    assert class_colours([]).shape == (0, 3)


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
