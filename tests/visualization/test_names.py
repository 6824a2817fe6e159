"""Names in regions: inside where they fit, never on each other, none where there is no room."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clipself_seg.visualization.fonts import text_length
from clipself_seg.visualization.names import INSIDE, LEAST_TEXT, place_names, write_names


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
