"""predict --boxes: detections that can be read back, and what it refuses."""

from __future__ import annotations

import json

import pytest

from clipself_seg.commands import predict
from tests.prediction.test_detection import OPTS as BOX_OPTS


@pytest.fixture
def boxes(run):
    def call(*words, weights="random", opts=BOX_OPTS, **config):
        return run("--boxes", *words, weights=weights, opts=opts, **config)

    return call


def test_boxes_of_a_folder_can_be_read_back(boxes, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes((photos / "one.jpg").read_bytes()[:300])
    words = ("--vocabulary", "green ring, blue ring|hoop")
    assert boxes(*words, "--input", photos) == 1
    said = capsys.readouterr()
    assert "2 of 3 searched for objects" in said.out and "broken.jpg cannot be decoded" in said.err
    out = tmp_path / "out"
    content = json.loads((out / "detections.json").read_text())
    assert [c["seen"] for c in content["categories"]] == [True, False]
    assert content["info"]["score threshold"] == 0 and len(content["info"]["failed"]) == 1
    assert [i["file_name"] for i in content["images"]] == ["one.jpg", "sub/two.png"]
    assert len(content["annotations"]) == 10
    assert {path.name for path in out.rglob("*.png")} == {"one.png", "two.png"}


def test_boxes_of_low_scores_are_left_out_unless_asked_for(boxes, photos, tmp_path):
    opts = BOX_OPTS[: BOX_OPTS.index("MODEL.FVIT.SCORE_THRESHOLD")]
    assert boxes("--vocabulary", "dog", "--input", photos / "one.jpg", opts=opts) == 0
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert content["info"]["score threshold"] == predict.SCORE_THRESHOLD


@pytest.mark.parametrize(
    "words, how, message",
    [
        (("--vocabulary", ""), {}, "empty"),
        (("--vocabulary", "dog", "--score-threshold", "2"), {}, "must be in [0, 1], got 2.0"),
        (("--vocabulary", "dog", "--scores"), {}, "--scores does not go with --boxes"),
        (("--vocabulary", "dog", "--stuff", "dog"), {}, "--stuff does not go with --boxes"),
        (("--vocabulary", "dog"), {"config": "mini/semseg", "opts": ()}, "CATSeg, which detects"),
        (("--vocabulary", "dog"), {"weights": "none.pth"}, "no checkpoint at none.pth"),
    ],
)
def test_bad_input_of_boxes_is_a_line_and_status_2(
    boxes, photos, tmp_path, capsys, words, how, message
):
    assert boxes(*words, "--input", photos, **how) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") <= 2
    assert not (tmp_path / "out").exists()


def test_the_detector_that_comes_with_the_project_finds_boxes(photos, tmp_path):
    words = ["--boxes", "--vocabulary", "red circle", "--input", str(photos)]
    threshold = ["--score-threshold", "0.0"]
    assert predict.main([*words, *threshold, "--output", str(tmp_path / "out")]) in (0, 1)
    found = json.loads((tmp_path / "out/detections.json").read_text())
    assert len(found["annotations"]) > 0


def test_options_of_boxes_are_refused_without_it(run, panoptic, photos, capsys):
    words = ("--vocabulary", "dog", "--score-threshold", "0.5", "--input", photos)
    assert run(*words) == 2
    assert "--score-threshold needs --boxes" in capsys.readouterr().err
    assert panoptic(*words) == 2
    assert "--score-threshold does not go with --panoptic" in capsys.readouterr().err
