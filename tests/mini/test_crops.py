"""What a crop of a mini scene is said to show."""

from __future__ import annotations

import numpy as np
import pytest

from clipself_seg.mini.concepts import WORLDS
from clipself_seg.mini.crops import COLOURLESS, leave_out_colours, visible_concepts, write_caption
from clipself_seg.mini.scenes import Scene, Segment

SPEC = WORLDS["mini"]


def scene():
    """A thing of 40 x 40 pixels in the middle of grass, 100 x 120."""
    segment_map = np.full((100, 120), 2, np.uint8)
    segment_map[30:70, 40:80] = 1
    thing = Segment(1, SPEC.things[0], (40, 30, 80, 70), 1600)
    stuff = Segment(2, SPEC.stuff[0], (0, 0, 120, 100), 100 * 120 - 1600)
    return Scene(np.zeros((100, 120, 3), np.uint8), segment_map, (thing, stuff))


@pytest.mark.parametrize(
    "box, things, stuff",
    [
        ((20, 10, 100, 90), 1, 1),  # all of it
        ((0, 0, 120, 100), 1, 1),  # all of it, an eighth of the box
        ((64, 30, 100, 70), 1, 1),  # two fifths of it, nearly half of the box
        ((72, 54, 88, 70), 0, 1),  # a corner: 8 of 100 parts
        ((50, 40, 70, 60), 1, 0),  # a quarter of it that fills the box
        ((0, 0, 48, 100), 0, 1),  # a fifth of it, a fifteenth of the box
    ],
)
def test_a_good_piece_of_a_thing_is_named_and_a_scrap_is_not(box, things, stuff):
    named = visible_concepts(scene(), tuple(map(float, box)))
    assert (len(named[0]), len(named[1])) == (things, stuff)


def test_what_a_crop_is_about_comes_first_however_little_of_it_is_seen():
    whole = scene()
    for main in whole.segments:
        named = visible_concepts(whole, (72.0, 54.0, 88.0, 70.0), main)
        assert named[0 if main.concept.isthing else 1][0] is main.concept


def test_some_things_are_called_by_their_shape_alone_and_mean_something_else_then():
    rng = np.random.default_rng(0)
    said = leave_out_colours(rng, SPEC.things * 40)
    assert [thing.shape for thing in said] == [thing.shape for thing in SPEC.things] * 40
    without = [thing for thing in said if thing.colour is None]
    assert len(without) / len(said) == pytest.approx(COLOURLESS, abs=0.05)
    assert {thing.names for thing in without} == {(thing.shape,) for thing in SPEC.things}
    assert write_caption(rng, without[:1], ()).count(without[0].shape) == 1
    assert set(said) - set(without) <= set(SPEC.things)
