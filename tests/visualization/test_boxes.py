"""Boxes over images: seen and unseen classes can be told apart with and without colour, at any size."""

import numpy as np
import pytest

from clipself_seg.visualization.boxes import SEEN, UNSEEN, box_overlay

GROUND = 128


def drawn(seen, height=500, width=600, masks=None, box=(40, 60, 340, 260), names=None):
    image = np.full((height, width, 3), GROUND, np.uint8)
    count = len(seen)
    boxes = np.array([box] * count, np.float32).reshape(-1, 4)
    names = names or ["dog"] * count
    scores = np.full(count, 0.5, np.float32)
    return np.asarray(box_overlay(image, boxes, scores, names, np.array(seen, bool), masks))


def pixels_of(colour, picture):
    return (picture == np.array(colour, np.uint8)).all(axis=-1)


def test_boxes_of_seen_classes_are_blue_and_solid_of_unseen_ones_red_and_dashed():
    solid, dashed = drawn([True]), drawn([False])
    edge = slice(41, 339)
    assert pixels_of(SEEN, solid[259, edge]).all() and pixels_of(SEEN, solid[61:259, 40]).all()
    line = pixels_of(UNSEEN, dashed[259, edge])
    assert 0.5 < line.mean() < 0.75 and not pixels_of(SEEN, dashed[:500]).any()
    # The gaps are white: what is below does not hide them.
    assert (dashed[259, edge][~line] == 255).all()
    assert (solid[110:200, 100:300] == GROUND).all()


def test_names_of_unseen_classes_are_marked_without_colour():
    solid, dashed = (drawn([known])[:59].min(axis=-1) < GROUND for known in (True, False))
    assert solid.any(axis=0).sum() < dashed.any(axis=0).sum()


def test_true_boxes_have_names_alone():
    image = np.full((500, 600, 3), GROUND, np.uint8)
    given = image, np.array([[40.0, 60, 340, 260]])
    pictures = [
        np.asarray(box_overlay(*given, scores, ["dog"], np.ones(1, bool)))[:59]
        for scores in (None, np.array([0.5]))
    ]
    widths = [(picture.min(axis=-1) < GROUND).any(axis=0).sum() for picture in pictures]
    assert 0 < widths[0] < widths[1]


def test_the_best_box_lies_on_top():
    assert pixels_of(SEEN, drawn([True, False])[259, 41:339]).all()


def test_masks_are_tinted_within_and_nowhere_else():
    masks = np.zeros((1, 500, 600), bool)
    masks[0, 120:180, 100:200] = True
    picture = drawn([True], masks=masks)
    assert picture[125, 105].tolist() == [round(0.6 * GROUND + 0.4 * part) for part in SEEN]
    assert (picture[150, 210] == GROUND).all() and pixels_of(SEEN, picture)[179, 150]


def test_a_name_stands_in_its_mask_if_there_is_room_and_else_beside_the_box():
    masks = np.zeros((1, 500, 600), bool)
    masks[0, 80:240, 60:320] = True
    wide = drawn([True], masks=masks)
    assert (wide[:58] == GROUND).all() and pixels_of(SEEN, wide)[110:210, 100:280].sum() > 500
    # What lies over a mask takes its room away.
    masks = np.stack([masks[0], masks[0]])
    masks[0, 130:240] = False
    both = drawn([True, False], masks=masks)
    assert pixels_of(SEEN, both)[85:125, 70:310].sum() > 500
    assert pixels_of(UNSEEN, both)[135:235, 70:310].sum() > 500
    masks[:, :, 70:] = False
    narrow = drawn([True, True], masks=masks)
    assert pixels_of(SEEN, narrow)[:58].any()


@pytest.mark.parametrize("height, width", [(1, 1), (3, 500), (40, 60), (900, 20)])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0, 0, 5000, 5000), (0.2, 0.2, 0.4, 0.4)])
def test_any_size_and_any_box_is_drawn(height, width, box):
    masks = np.ones((2, height, width), bool)
    picture = drawn([True, False], height, width, masks, box, ["a very long name " * 9, "b"])
    assert picture.shape[1] >= width and picture.shape[0] > height
    assert pixels_of(SEEN, picture).any() and pixels_of(UNSEEN, picture).any()


def test_labels_keep_apart_as_long_as_there_is_room():
    covered, alone = (
        pixels_of(UNSEEN, drawn(seen)[:59]).sum() for seen in ([True, False], [False])
    )
    assert covered == alone > 500


def test_labels_that_would_hide_those_of_better_boxes_are_left_out():
    few, many = (drawn([True] * count, names=["cat"] + ["dog"] * (count - 1)) for count in (9, 30))
    assert (few[:500] == many[:500]).all()
    two, three = drawn([True] * 2), drawn([True] * 3)
    assert (two[:500] != three[:500]).any()


def test_an_image_without_boxes_has_its_legend():
    picture = drawn([])
    assert (picture[:500] == GROUND).all() and picture.shape[0] > 500
