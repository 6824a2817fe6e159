"""Things of the mini worlds: their outlines, and marks that tell a piece of one from a piece of another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from clipself_seg.mini.concepts import WORLDS
from clipself_seg.mini.shapes import MARK_PERIOD, MARKS, MAX_TILT, Pose, shape_alpha, surface

SIZE = (96, 128)
SHAPES = sorted({thing.shape for spec in WORLDS.values() for thing in spec.things})


def pose(**changes):
    return Pose(**{"centre": (64.0, 48.0), "radius": 30.0, "angle": 0.0, "stretch": 1.0, **changes})


def piece(shape):
    """A window of 20 x 20 pixels beside the middle, as the size of every wave in it, and its mean."""
    window = surface(shape, pose(), SIZE)[34:54, 66:86]
    waves = np.abs(np.fft.fft2(window)) / window.size
    waves[0, 0] = 2 * window.mean()
    return waves.ravel() / np.linalg.norm(waves)


def test_every_shape_has_marks_and_a_largest_tilt():
    assert set(SHAPES) == set(MARKS) == set(MAX_TILT)


@pytest.mark.parametrize("shape", SHAPES)
def test_marks_are_light_from_minus_one_to_one(shape):
    light = surface(shape, pose(), SIZE)
    assert light.shape == SIZE and light.dtype == np.float32
    assert -1 <= light.min() and light.max() <= 1


@pytest.mark.parametrize("one, other", list(itertools.combinations(SHAPES, 2)))
def test_a_piece_of_a_surface_tells_two_shapes_apart(one, other):
    assert piece(one) @ piece(other) < 0.8


def test_marks_turn_and_move_with_their_thing():
    upright, turned = surface("triangle", pose(), SIZE), surface("triangle", pose(angle=90.0), SIZE)
    assert np.ptp(upright, axis=1).max() < 1e-5 and np.ptp(turned, axis=0).max() < 1e-5
    moved = surface("star", pose(centre=(71.0, 51.0)), SIZE)
    np.testing.assert_allclose(moved[3:, 7:], surface("star", pose(), SIZE)[:-3, :-7], atol=1e-4)


@pytest.mark.parametrize("radius, period", [(8.0, MARK_PERIOD[0]), (90.0, MARK_PERIOD[1])])
def test_marks_of_small_and_large_things_keep_a_period_that_can_be_seen(radius, period):
    column = surface("triangle", pose(radius=radius), (400, 4))[:, 0]
    waves = np.abs(np.fft.rfft(column))
    assert 400 / waves.argmax() == pytest.approx(period, rel=0.02)


def test_a_mask_covers_its_shape():
    alpha = shape_alpha("circle", pose(), SIZE)
    assert alpha.sum() == pytest.approx(np.pi * (0.95 * 30) ** 2, rel=0.01)
    stretched = shape_alpha("circle", pose(stretch=1.44), SIZE) > 0.5
    assert stretched.any(0).sum() / stretched.any(1).sum() == pytest.approx(1.44, rel=0.05)
