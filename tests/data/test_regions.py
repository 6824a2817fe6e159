"""Regions: grid cells and proposals by hand and by their distribution, panoptic segments with their token masks."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_seg.data.regions import (
    enlarge_boxes,
    grid_boxes,
    grid_pairs,
    read_segments,
    relative_boxes,
    sample_grid_regions,
    sample_proposal_regions,
    segment_regions,
    token_masks,
)
from clipself_seg.errors import InputError
from tests.panoptic_worlds import save_ids

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


def test_grid_cells_by_hand():
    assert grid_boxes(2, 3, 30, 10).tolist() == [
        [0, 0, 10, 5],
        [10, 0, 20, 5],
        [20, 0, 30, 5],
        [0, 5, 10, 10],
        [10, 5, 20, 10],
        [20, 5, 30, 10],
    ]


def test_sampled_grids_are_distinct_cells_of_one_grid_and_reach_all_pairs():
    seen = set()
    for seed in range(400):
        boxes, crops = sample_grid_regions(rng(seed), width=60, height=60)
        assert 1 <= len(boxes) <= 20 and len(np.unique(boxes, axis=0)) == len(boxes)
        np.testing.assert_array_equal(boxes, crops)
        size = 60 / (boxes[0, 2:] - boxes[0, :2])
        seen.add((round(size[1]), round(size[0])))
    assert seen == set(grid_pairs(6))


def test_cells_under_a_cap_are_drawn_from_the_whole_grid():
    """D2: cells are shuffled before the first ones are kept; else the last rows of a grid would never be seen."""
    corners = [
        sample_grid_regions(rng(seed), width=60, height=60, max_regions=1)[0][0, 2:].tolist()
        for seed in range(200)
    ]
    last = [corner for corner in corners if corner == [60, 60]]
    assert len(last) > 5 and len({tuple(corner) for corner in corners}) > 30


def test_without_a_cap_every_cell_is_used():
    counts = {
        len(sample_grid_regions(rng(seed), width=9, height=9, max_regions=0)[0])
        for seed in range(300)
    }
    assert max(counts) == 36


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
    # Without a cap all are kept, and the teacher's crop grows while the student's box stays.
    whole = sample_proposal_regions(rng(), boxes[1::2], width=640, height=480, max_regions=0)
    assert len(whole.boxes) == 15 and sorted(whole.boxes.tolist()) == boxes[1::2].tolist()
    np.testing.assert_array_equal(whole.crops, enlarge_boxes(whole.boxes, 1.5, 640, 480))


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


THINGS = frozenset({1, 2})


def info(segment_id, category_id, bbox=(0, 0, 10, 10), iscrowd=0):
    return {"id": segment_id, "category_id": category_id, "bbox": list(bbox), "iscrowd": iscrowd}


@pytest.fixture
def scene(tmp_path):
    """An image of 30 x 20: void, a thing at the left, stuff at the right with a hole."""
    ids = np.zeros((20, 30), dtype=np.int64)
    ids[2:14, 1:11] = 70000
    ids[4:19, 15:28] = 513
    ids[10, 20] = 0
    save_ids(tmp_path / "42.png", ids)
    return {
        "file_name": "42.jpg",
        "image_id": 42,
        "width": 30,
        "height": 20,
        "pan_seg_file_name": str(tmp_path / "42.png"),
        "segments_info": [info(513, 100, (0, 0, 1, 1)), info(70000, 1, (1, 2, 10, 12), 1)],
    }


def test_things_have_the_annotations_box_and_stuff_the_masks_one_pixel_short(scene):
    assert set(np.unique(read_segments(scene, THINGS).ids)) == {0, 513, 70000}
    segments = read_segments(scene, THINGS)
    # File order, crowds included.
    assert segments.category_ids.tolist() == [100, 1]
    assert segments.boxes.tolist() == [[15, 4, 27, 18], [1, 2, 11, 14]]
    assert segments.masks.sum((1, 2)).tolist() == [13 * 15 - 1, 120]


def test_only_things_get_larger_crops(scene):
    regions = segment_regions(read_segments(scene, THINGS), np.array([False, True]), 1.5)
    assert regions.boxes.tolist() == [[15, 4, 27, 18], [1, 2, 11, 14]]
    assert regions.crops.tolist() == [[15, 4, 27, 18], [0, 0, 13.5, 17]]


def test_regions_are_dropped_by_box_area_inclusive(scene):
    scene["segments_info"][1]["bbox"] = [1, 2, 8, 8]
    assert len(read_segments(scene, THINGS).boxes) == 2
    scene["segments_info"][1]["bbox"] = [1, 2, 8, 7.9]
    assert read_segments(scene, THINGS).category_ids.tolist() == [100]


def test_stuff_that_things_cover_entirely_is_no_region_where_the_data_set_lists_it(scene):
    scene["segments_info"].append(info(7, 101))
    with pytest.raises(InputError, match="7. only in the JSON"):
        read_segments(scene, THINGS)
    segments = read_segments(scene | {"covered_stuff": True}, THINGS)
    assert segments.segment_ids.tolist() == [513, 70000]


def test_the_first_hundred_segments_count(scene, tmp_path):
    ids = np.arange(1, 121).reshape(12, 10).repeat(10, axis=0).repeat(10, axis=1)
    save_ids(tmp_path / "42.png", ids)
    infos = [info(number, 1) for number in range(120, 0, -1)]
    record = scene | {"width": 100, "height": 120, "segments_info": infos}
    segments = read_segments(record, THINGS)
    assert segments.segment_ids.tolist() == list(range(120, 20, -1))


def segments_of(change):
    return lambda record, _: change(record["segments_info"])


def png_of(values):
    return lambda _, path: Image.fromarray(values).save(path)


BOTH = r"42\.png and the entry of image 42 in the JSON dis"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda record, _: record.update(width=31), BOTH),
        (segments_of(lambda infos: infos.append(info(99, 1))), BOTH),
        (segments_of(lambda infos: infos[1].update(bbox=[25, 2, 10, 12])), BOTH),
        (png_of(np.zeros((20, 30, 3), np.uint8)), BOTH),
        (png_of(np.zeros((20, 30), np.uint8)), "42.png"),
        (lambda _, path: path.write_bytes(path.read_bytes()[:60]), "42.png"),
    ],
)
def test_pngs_that_cannot_be_used_or_disagree_with_their_json_are_named(
    scene, tmp_path, spoil, message
):
    spoil(scene, tmp_path / "42.png")
    with pytest.raises(InputError, match=message) as caught:
        read_segments(scene, THINGS)
    assert len(str(caught.value).splitlines()) <= 2


def disc(radius, height=480, width=640):
    y, x = np.mgrid[:height, :width]
    return (x - width // 2) ** 2 + (y - height // 2) ** 2 < radius**2


@pytest.mark.parametrize("radius, cells", [(20, 14), (40, 52), (80, 208)])
def test_reference_masks_have_the_measured_areas(radius, cells):
    """Areas of discs that the behaviour specification gives for resizing without antialias."""
    assert token_masks(disc(radius)[None], 64).sum() == cells


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (7, 9), (50, 50)])
def test_a_full_mask_fills_the_picture_but_not_the_padding(size):
    (mask,) = token_masks(np.ones((1, *size), dtype=bool), 8)
    rows, columns = (round(8 * side / max(size)) for side in size)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:rows, :columns] = True
    torch.testing.assert_close(mask, expected)
    assert token_masks(np.zeros((0, *size), dtype=bool), 8).shape == (0, 8, 8)


def test_a_thin_mask_may_vanish():
    masks = np.zeros((1, 64, 64), dtype=bool)
    masks[0, 0, :] = True
    assert not token_masks(masks, 8).any()
