"""Colours and names of segments: all different, of one class alike; drawn at any size."""

from __future__ import annotations

import numpy as np
import pytest

from clipself_seg.visualization.class_colours import class_colours
from clipself_seg.visualization.panoptic import (
    colour_ids,
    panoptic_overlay,
    segment_colours,
    segment_names,
)

NAMES = ("dog", "grass", "sky")
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
