"""Objects of a video: what they are called, the formats they are written in, and their numbers over the frames."""

import json
import sys
from collections import Counter

import numpy as np
import pytest

from clipself_seg.commands import predict
from clipself_seg.data.masks import mask_as_json
from clipself_seg.errors import MissingPackage
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.tracks import Sighting, Tracks, track_video
from clipself_seg.prediction.video import Video
from tests.moving_shapes import moving_shapes

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}]


def tracks():
    """A dog that is once taken for a cat, and is not looked at in the second of three frames."""
    made = Tracks(None, 2)
    made.size = (8, 6)
    mask = mask_as_json(np.ones((6, 8), bool))
    made.frames = [
        {1: Sighting([1, 2, 3, 4], mask)},
        {1: Sighting([1.5, 2, 3, 4])},
        {1: Sighting([2, 2, 3, 4], mask), 2: Sighting([0, 0, 1, 1], mask)},
    ]
    made.scores |= {1: [(1, 0.5), (0, 0.6), (1, 0.4)], 2: [(0, 0.25)]}
    return made


def test_an_object_has_the_name_with_the_highest_mean_score():
    assert tracks().named() == {1: (1, pytest.approx(0.3)), 2: (0, 0.25)}


def test_formats_have_every_frame_and_no_mask_that_nobody_saw():
    content = tracks().to_coco("walk", CATEGORIES)
    (video,) = content["videos"]
    assert video.pop("file_names") == ["walk/000000.jpg", "walk/000001.jpg", "walk/000002.jpg"]
    assert video == {"id": 1, "width": 8, "height": 6, "length": 3}
    dog, cat = content["annotations"]
    assert (dog["category_id"], cat["category_id"]) == (5, 3)
    assert dog["bboxes"] == [[1, 2, 3, 4], [1.5, 2, 3, 4], [2, 2, 3, 4]]
    assert dog["areas"] == [48, None, 48] and dog["segmentations"][1] is None
    assert cat["bboxes"] == [None, None, [0, 0, 1, 1]]
    json.dumps(content)
    assert tracks().to_mot().splitlines()[1:3] == [
        "2,1,1.50,2.00,3.00,4.00,0.3000,-1,-1,-1",
        "3,1,2.00,2.00,3.00,4.00,0.3000,-1,-1,-1",
    ]


def test_the_colour_of_an_object_is_the_same_in_all_frames():
    image = np.full((120, 160, 3), 90, np.uint8)
    made = Tracks(None, 1)
    made.frames = [
        {1: Sighting([20, 20, 60, 60])},
        {2: Sighting([5, 5, 9, 9]), 1: Sighting([20, 20, 60, 60])},
    ]
    made.scores |= {1: [(0, 0.5)], 2: [(0, 0.5)]}
    first, second = (made.overlay(number, image, ["cat"]) for number in (0, 1))
    assert (first[60, 20] == second[60, 20]).all() and (first[60, 20] != 90).any()


def test_without_trackers_the_command_that_brings_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(MissingPackage, match=r'pip install "clipself_seg\[video\]"'):
        track_video(None, ImageFile(tmp_path / "a.mp4", "a.mp4"), save=(), every=1, batch_size=1)


def scores(truth, found):
    """IDF1, HOTA and switches by trackers.eval; trackeval agrees on the first two."""
    from trackers import load_mot_file
    from trackers.eval import evaluate_mot_sequence
    from trackers.io.mot import _prepare_mot_sequence
    from trackeval.metrics import HOTA, Identity

    own = evaluate_mot_sequence(truth, found, metrics=["CLEAR", "HOTA", "Identity"])
    data = vars(_prepare_mot_sequence(load_mot_file(truth), load_mot_file(found)))
    data["num_timesteps"] = data["num_frames"]
    checked = Identity().eval_sequence(data)["IDF1"], HOTA().eval_sequence(data)["HOTA"].mean()
    assert checked == pytest.approx((own.Identity.IDF1, own.HOTA.HOTA), abs=1e-6)
    return own.Identity.IDF1, own.HOTA.HOTA, own.CLEAR.IDSW


@pytest.mark.heavy  # trackers and trackeval
@pytest.mark.parametrize("every", [1, 2])
def test_shapes_that_cross_keep_their_numbers(tmp_path, every):
    pytest.importorskip("trackers", reason="trackers is not installed: the extra video has it")
    pytest.importorskip("trackeval", reason="trackeval is not installed")
    truth, by_place = tmp_path / "truth.txt", tmp_path / "by_place.txt"
    boxes = moving_shapes(tmp_path / "clip.mp4")
    rows = [(f, n, *box) for f, seen in enumerate(boxes, 1) for n, box in enumerate(seen, 1)]
    truth.write_text("".join(",".join(map(str, (*row, 1, 1, 1))) + "\n" for row in rows))
    words = ["--words", "red star, blue ring, yellow heart, grass", "--stuff", "grass"]
    how = ["--task", "panoptic", "--model", "mini", "--every", str(every), "--device", "cpu"]
    out = ["--output", str(tmp_path / "out")]
    assert predict.main([str(tmp_path / "clip.mp4"), "--track", *words, *how, *out]) == 0
    tracked = tmp_path / "out/tracks/clip.txt"
    # Without tracks an object has its place in the prediction for a number.
    lines, count = "", Counter()
    for row in tracked.read_text().splitlines():
        frame, _, rest = row.split(",", 2)
        count[frame] += 1
        lines += f"{frame},{count[frame]},{rest}\n"
    by_place.write_text(lines)
    before, after = scores(truth, by_place), scores(truth, tracked)
    assert after[0] > before[0] + 0.05 and after[1] > before[1] + 0.05 and after[2] < before[2]
    content = json.loads((tmp_path / "out/tracks/clip.json").read_text())
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    objects = content["annotations"]
    assert {names[one["category_id"]] for one in objects} == {
        "red star",
        "blue ring",
        "yellow heart",
    }
    masks = {frame for one in objects for frame, mask in enumerate(one["segmentations"]) if mask}
    assert masks == set(range(0, 24, every)) and content["videos"][0]["length"] == 24
    drawn = Video(tmp_path / "out/overlays/clip.mp4", 10**6)
    assert len(list(drawn.frames(1))) == 24 and drawn.rate == 12
