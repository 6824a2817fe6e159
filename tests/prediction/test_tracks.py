"""Objects of a video: what they are called, the formats they are written in, and their numbers over the frames."""

import json
import subprocess
import sys

import numpy as np
import pytest
from pycocotools import mask as rle

from clipself_seg.errors import MissingPackage
from clipself_seg.prediction.tracks import Sighting, Tracks, tracker_of
from tests.conftest import ROOT
from tests.moving_shapes import moving_shapes

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}]


def tracks():
    """A dog that is once taken for a cat, and is not looked at in the second of three frames."""
    made = Tracks(None, 2)
    made.size = (8, 6)
    mask = rle.encode(np.asfortranarray(np.ones((6, 8), np.uint8)))
    mask["counts"] = mask["counts"].decode()
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


def test_without_trackers_the_command_that_brings_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(MissingPackage, match=r'pip install "clipself_seg\[video\]"'):
        tracker_of(25.0, 1)


def scores(truth, found):
    """IDF1, HOTA and switches by trackers.eval, and IDF1 and HOTA by trackeval."""
    from trackers import load_mot_file
    from trackers.eval import evaluate_mot_sequence
    from trackers.io.mot import _prepare_mot_sequence
    from trackeval.metrics import HOTA, Identity

    own = evaluate_mot_sequence(truth, found, metrics=["CLEAR", "HOTA", "Identity"])
    data = _prepare_mot_sequence(load_mot_file(truth), load_mot_file(found))
    other = {
        "num_timesteps": data.num_frames,
        "num_gt_ids": data.num_gt_ids,
        "num_tracker_ids": data.num_tracker_ids,
        "num_gt_dets": data.num_gt_dets,
        "num_tracker_dets": data.num_tracker_dets,
        "gt_ids": data.gt_ids,
        "tracker_ids": data.tracker_ids,
        "similarity_scores": data.similarity_scores,
    }
    checked = Identity().eval_sequence(other)["IDF1"], HOTA().eval_sequence(other)["HOTA"].mean()
    assert checked == pytest.approx((own.Identity.IDF1, own.HOTA.HOTA), abs=1e-6)
    return own.Identity.IDF1, own.HOTA.HOTA, own.CLEAR.IDSW


@pytest.mark.heavy  # trackers and trackeval
@pytest.mark.parametrize("every", [1, 2])
def test_shapes_that_cross_keep_their_numbers(tmp_path, every):
    pytest.importorskip("trackers", reason="trackers is not installed: the extra video has it")
    pytest.importorskip("trackeval", reason="trackeval is not installed")
    boxes = moving_shapes(tmp_path / "clip.mp4")
    truth, before = tmp_path / "truth.txt", tmp_path / "before.txt"
    truth.write_text(
        "".join(
            f"{frame},{number},{','.join(map(str, box))},1,1,1\n"
            for frame, seen in enumerate(boxes, 1)
            for number, box in enumerate(seen, 1)
        )
    )
    words = ["--words", "red star, blue ring, yellow heart, grass", "--stuff", "grass"]
    how = ["--task", "panoptic", "--model", "mini", "--every", str(every), "--device", "cpu"]
    line = [sys.executable, "-m", "clipself_seg", "predict", str(tmp_path / "clip.mp4"), "--track"]
    out = ["--output", str(tmp_path / "out")]
    subprocess.run([*line, *words, *how, *out], cwd=ROOT, check=True, capture_output=True)
    found = tmp_path / "out/tracks/clip.txt"
    # Without tracks an object has its place in its frame for a number.
    count, lines = dict[str, int](), []
    for row in found.read_text().splitlines():
        frame, _, rest = row.split(",", 2)
        count[frame] = count.get(frame, 0) + 1
        lines.append(f"{frame},{count[frame]},{rest}\n")
    before.write_text("".join(lines))
    earlier, now = scores(truth, before), scores(truth, found)
    print(every, earlier, now)
    assert now[0] > earlier[0] + 0.05 and now[1] > earlier[1] + 0.05 and now[2] < earlier[2]
    content = json.loads((tmp_path / "out/tracks/clip.json").read_text())
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    called = {names[one["category_id"]] for one in content["annotations"]}
    assert called == {"red star", "blue ring", "yellow heart"}
    looked = {
        frame
        for one in content["annotations"]
        for frame, mask in enumerate(one["segmentations"])
        if mask
    }
    assert looked <= set(range(0, 24, every)) and content["videos"][0]["length"] == 24
    assert sum(box is not None for one in content["annotations"] for box in one["bboxes"]) > 50
