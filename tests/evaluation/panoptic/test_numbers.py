"""Panoptic quality is panopticapi's to the last digit; files that disagree are named."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from clipself_seg.commands.panoptic_quality import Side, read_classes
from clipself_seg.data.masks import read_panoptic_png
from clipself_seg.errors import InputError
from clipself_seg.evaluation.panoptic.quality import (
    match_segments,
    panoptic_map,
    panoptic_quality,
    panoptic_results,
)
from tests.panoptic_worlds import (
    CATEGORIES,
    own_quality,
    panopticapi_quality,
    random_sides,
    save_ids,
)

THING, OTHER, STUFF = 2, 9, 23
INDEX_OF = {entry["id"]: index for index, entry in enumerate(CATEGORIES)}
ISTHING = np.array([entry["isthing"] == 1 for entry in CATEGORIES])


def results_of(quality, classes):
    """All numbers of classes as a panoptic JSON lists them."""
    isthing = np.array([entry["isthing"] == 1 for entry in classes])
    return panoptic_results(quality, [entry["name"] for entry in classes], isthing)


def assert_panopticapis(truth, predicted):
    """Every number, per class and averaged."""
    quality = own_quality(truth, predicted)
    stat, groups = panopticapi_quality(truth, predicted)
    classes = read_classes(truth.json)
    for index, category in enumerate(entry["id"] for entry in classes):
        theirs = stat[category]
        ours = [getattr(quality, key)[index] for key in ("tp", "fp", "fn", "iou_sum")]
        assert ours == [theirs.tp, theirs.fp, theirs.fn, theirs.iou], category
    results = results_of(quality, classes)
    for suffix, expected in groups.items():
        for key in ("pq", "sq", "rq"):
            assert results[f"{key.upper()}{suffix}"] == 100 * expected[key]
        assert results[f"classes{suffix}"] == expected["n"]
    in_range = [value for value in results.values() if not math.isnan(value)]
    assert min(in_range) >= 0 and all(results[key] <= 100 for key in ("PQ", "SQ", "RQ"))
    return quality, results


@pytest.mark.parametrize("seed", range(8))
def test_random_images_with_crowds_void_and_wrong_areas(tmp_path, seed):
    quality, results = assert_panopticapis(*random_sides(tmp_path, seed))
    assert quality.tp.sum() > 5 < quality.fp.sum() and 0 < results["PQ"] < 100


@pytest.fixture
def val(data_dir):
    return Side(
        data_dir / "coco/annotations/panoptic_val2017.json", data_dir / "coco/panoptic_val2017"
    )


def test_a_spoilt_prediction_of_real_images(data_dir, val):
    folder = data_dir / "pq_case"
    predicted = Side(folder / "pred.json", folder / "pred")
    quality, results = assert_panopticapis(val, predicted)
    expected = json.loads((folder / "expected.json").read_text())
    for suffix, group in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for key in ("pq", "sq", "rq"):
            assert results[f"{key.upper()}{suffix}"] == 100 * expected["groups"][group][key]
    # Its sums over images were taken in another order.
    for category, numbers in zip(read_classes(val.json), zip(*quality)):
        row = expected["per_class"][str(category["id"])]
        keys = ("pq", "sq", "rq", "tp", "fp", "fn", "iou_sum")
        np.testing.assert_allclose(
            np.nan_to_num(numbers), [row[key] for key in keys], rtol=0, atol=1e-12
        )


def segment(number, category, area=-1, iscrowd=0):
    return {"id": number, "category_id": category, "area": area, "iscrowd": iscrowd}


def quality_of(true_ids, true_segments, predicted_ids, predicted_segments):
    sides = [
        panoptic_map(np.array([ids]), segments, INDEX_OF, name)
        for ids, segments, name in (
            (true_ids, true_segments, "a.png and a.json"),
            (predicted_ids, predicted_segments, "b.png and b.json"),
        )
    ]
    return panoptic_quality([match_segments(*sides)], len(INDEX_OF))


def test_no_segment_on_either_side_and_no_image_are_fine():
    assert quality_of([0, 0], [], [5, 5], [segment(5, THING)]).fp.sum() == 0
    assert quality_of([1, 1], [segment(1, THING, 2)], [0, 0], []).fn.sum() == 1
    nothing = panoptic_quality([], 6)
    assert np.isnan(nothing.pq).all()
    results = panoptic_results(nothing, [entry["name"] for entry in CATEGORIES], ISTHING)
    assert results["classes"] == 0 and "PQ" not in results


def test_seen_and_unseen_classes_split_the_mean():
    quality = quality_of([1, 1, 2, 2, 3], [segment(1, THING, 2), segment(2, OTHER, 2), segment(3, STUFF, 1)],
                         [5, 5, 0, 0, 0], [segment(5, THING)])  # fmt: skip
    seen = np.array([True, False, True, False, False, False])
    results = panoptic_results(quality, [entry["name"] for entry in CATEGORIES], ISTHING, seen)
    assert (results["PQ_seen"], results["PQ_unseen"]) == (100, 0)
    assert (results["classes_seen"], results["classes_unseen"]) == (1, 2)
    assert (results["PQ"], results["PQ_th"], results["PQ_st"]) == (100 * (1 / 3), 50, 0)
    assert results["PQ-class0"] == 100 and math.isnan(results["PQ-class2"])


@pytest.mark.parametrize(
    "side, ids, segments, said",
    [
        (0, [1, 9], [segment(1, THING, 1)], r"a.png and a.json disagree.*\[9\] only in the map"),
        (0, [1, 1], [segment(1, THING, 1)], r'a.json.*\[1\] with more pixels than their "area"'),
        (1, [5, 5], [segment(5, THING), segment(6, THING)], r"\[6\] only in the list"),
        (1, [5, 5], [segment(5, THING)] * 2, "segment id 5 is there twice"),
        (1, [5, 5, 5], [segment(5, THING)], "b.json: 3 x 1 pixels.*2 x 1 in a.png"),
    ],
)
def test_maps_and_lists_that_disagree_are_both_named(side, ids, segments, said):
    sides = [([1, 1], [segment(1, THING, 2)]), ([5, 5], [segment(5, THING)])]
    sides[side] = ids, segments
    with pytest.raises(InputError, match=said):
        quality_of(*sides[0], *sides[1])


def test_a_png_has_the_ids_that_pillow_reads(tmp_path, val):
    ids = np.random.default_rng(0).integers(0, 2**24, (7, 11))
    save_ids(tmp_path / "a.png", ids)
    np.testing.assert_array_equal(read_panoptic_png(tmp_path / "a.png"), ids)
    for path in sorted(val.folder.iterdir())[:5]:
        red, green, blue = np.asarray(Image.open(path)).astype(int).transpose(2, 0, 1)
        np.testing.assert_array_equal(read_panoptic_png(path), red + 256 * green + 65536 * blue)


def test_a_png_is_read_as_it_is_stored_whatever_it_says_of_display(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x112] = 6
    clear = tuple(pixels[0, 0].tolist())
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=turned, transparency=clear, gamma=0.3)
    ids = read_panoptic_png(tmp_path / "a.png")
    np.testing.assert_array_equal(ids, pixels.astype(int) @ [1, 256, 65536])


@pytest.mark.parametrize("mode", ["P", "L", "RGBA", "I;16"])
def test_a_png_of_other_pixels_is_refused(tmp_path, mode):
    Image.new(mode, (9, 8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=f"a.png has pixels of type {mode}: .* PNG has RGB"):
        read_panoptic_png(tmp_path / "a.png")


def test_a_broken_png_is_not_read_in_part(tmp_path):
    save_ids(tmp_path / "a.png", np.random.default_rng(0).integers(0, 2**24, (60, 70)))
    whole = (tmp_path / "a.png").read_bytes()
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    for content in (b"", whole[:20], whole[:60], whole[:5000], flipped):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(InputError, match="a.png cannot be decoded"):
            read_panoptic_png(tmp_path / "a.png")
