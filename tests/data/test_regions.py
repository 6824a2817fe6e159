"""Grids tile the image, proposals follow the reference's order of steps."""

from __future__ import annotations

import numpy as np
import pytest

from clipself_seg.data.regions import (
    enlarge_boxes,
    grid_boxes,
    grid_pairs,
    relative_boxes,
    sample_grid_regions,
    sample_proposal_regions,
)

QUARTER = [[0, 0, 160, 120]]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_six_splits_give_the_24_pairs_of_the_reference():
    columns = {1: [1, 2], 2: [1, 2, 3, 4], 3: [2, 3, 4, 5, 6], 4: [2, 3, 4, 5, 6]}
    columns |= {5: [3, 4, 5, 6], 6: [3, 4, 5, 6]}
    expected = [(m, n) for m, ns in columns.items() for n in ns]
    assert grid_pairs(6) == expected and len(expected) == 24
    assert round(np.mean([m * n for m, n in expected]), 1) == 15.0
    assert round(np.mean([min(m * n, 20) for m, n in expected]), 1) == 13.0


def test_the_papers_rule_allows_every_pair():
    assert grid_pairs(3, "all") == [(m, n) for m in (1, 2, 3) for n in (1, 2, 3)]
    assert grid_pairs(1) == grid_pairs(1, "all") == [(1, 1)]


@pytest.mark.parametrize("arguments", [(0,), (6, "square")])
def test_impossible_grids_are_refused(arguments):
    with pytest.raises(ValueError):
        grid_pairs(*arguments)


def test_grid_cells_by_hand():
    assert grid_boxes(2, 3, 30, 10).tolist() == [
        [0, 0, 10, 5],
        [10, 0, 20, 5],
        [20, 0, 30, 5],
        [0, 5, 10, 10],
        [10, 5, 20, 10],
        [20, 5, 30, 10],
    ]


@pytest.mark.parametrize("pair", grid_pairs(6))
def test_grid_cells_tile_the_picture(pair):
    width, height = 641, 427
    boxes = grid_boxes(*pair, width, height)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert len(boxes) == pair[0] * pair[1]
    np.testing.assert_allclose(areas.sum(), width * height)
    np.testing.assert_allclose(areas, areas[0])
    assert boxes.min() == 0 and boxes[:, 2].max() == width and boxes[:, 3].max() == height


def test_sampled_grids_are_distinct_cells_of_one_grid_and_reach_all_pairs():
    seen = set()
    for seed in range(400):
        boxes, crops = sample_grid_regions(rng(seed), width=60, height=60)
        assert 1 <= len(boxes) <= 20 and len(np.unique(boxes, axis=0)) == len(boxes)
        np.testing.assert_array_equal(boxes, crops)
        size = 60 / (boxes[0, 2:] - boxes[0, :2])
        seen.add((round(size[1]), round(size[0])))
    assert seen == set(grid_pairs(6))


def test_without_a_cap_every_cell_is_used():
    counts = {
        len(sample_grid_regions(rng(seed), width=9, height=9, max_regions=0)[0])
        for seed in range(300)
    }
    assert max(counts) == 36


def test_the_same_generator_state_draws_the_same_regions():
    first = sample_grid_regions(rng((3, 7)), width=50, height=40)
    second = sample_grid_regions(rng((3, 7)), width=50, height=40)
    np.testing.assert_array_equal(first.boxes, second.boxes)


def test_enlarging_is_about_the_centre_and_ends_at_the_border():
    boxes = np.array([[20, 20, 40, 30], [0, 0, 20, 20], [90, 40, 100, 50]])
    assert enlarge_boxes(boxes, 1.5, 100, 50).tolist() == [
        [15, 17.5, 45, 32.5],
        [0, 0, 25, 25],
        [87.5, 37.5, 100, 50],
    ]
    np.testing.assert_array_equal(enlarge_boxes(boxes, 1.0, 100, 50), boxes)
    assert enlarge_boxes(np.zeros((0, 4)), 1.5, 9, 9).shape == (0, 4)


def test_relative_boxes_are_fractions_of_the_longest_side():
    boxes = np.array([[0, 0, 640, 480], [320, 240, 640, 480]])
    assert relative_boxes(boxes, 640, 480).tolist() == [[0, 0, 1, 0.75], [0.5, 0.375, 1, 0.75]]
    assert relative_boxes(boxes[:, [1, 0, 3, 2]], 480, 640).max() == 1


def test_proposals_are_shuffled_then_cut_then_filtered():
    boxes = np.array([[x, 0, x + 10, 10] for x in range(30)], dtype=np.float64)
    boxes[::2, 3] = 1  # area 10: too small
    regions = sample_proposal_regions(rng(5), boxes, width=640, height=480)
    order = rng(5).permutation(30)[:20]
    # Dropped boxes are not replaced by later ones.
    np.testing.assert_array_equal(regions.boxes, boxes[[i for i in order if i % 2]])
    assert len(regions.boxes) < 20


def test_the_students_box_stays_and_the_teachers_crop_grows():
    regions = sample_proposal_regions(rng(), np.array([[20, 20, 40, 30]]), width=100, height=50)
    assert regions.boxes.tolist() == [[20, 20, 40, 30]]
    assert regions.crops.tolist() == [[15, 17.5, 45, 32.5]]


def test_area_limits_are_inclusive():
    boxes = np.array([[0, 0, 8, 8], [0, 0, 1024, 1024], [0, 0, 8, 7.9], [0, 0, 1024, 1025]])
    kept = sample_proposal_regions(rng(), boxes, width=2000, height=2000).boxes
    assert sorted(kept[:, 2].tolist()) == [8, 1024]


def test_areas_that_are_stated_decide_and_go_with_their_boxes():
    boxes = np.array([[x, 0, x + 8, 8] for x in range(30)], dtype=np.float64)
    areas = np.where(np.arange(30) % 3, 64.0, 63.0)
    kept = sample_proposal_regions(rng(1), boxes, width=64, height=64, areas=areas).boxes
    assert len(kept) and (kept[:, 0] % 3 != 0).all()


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), [[5, 5, 6, 6]], [[0, 0, 2000, 2000]]])
def test_without_a_usable_proposal_the_top_left_quarter_is_taken(boxes):
    regions = sample_proposal_regions(rng(), np.array(boxes), width=640, height=480)
    assert regions.boxes.tolist() == regions.crops.tolist() == QUARTER


def test_a_cap_of_zero_keeps_all_proposals():
    boxes = np.tile([[0, 0, 10, 10]], (50, 1))
    kept = sample_proposal_regions(rng(), boxes, width=20, height=20, max_regions=0)
    assert len(kept.boxes) == 50
