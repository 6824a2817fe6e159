"""predict --panoptic --masks: masks of anybody get names, and those that do not fit fail alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from clipself_seg.commands import predict
from clipself_seg.data.masks import read_panoptic_png
from tests.prediction.test_video import make_video


@pytest.fixture
def masks(tmp_path):
    """Two overlapping masks of one.jpg as run lengths, and a map of three of sub/two.png."""
    folder = tmp_path / "masks"
    (folder / "sub").mkdir(parents=True)
    whole = {"size": [40, 60], "counts": [0, 2400]}
    half = {"size": [40, 60], "counts": [0, 1200, 1200]}
    entries = [{"segmentation": whole, "score": 0.2}, {"segmentation": half, "score": 0.9}]
    (folder / "one.json").write_text(json.dumps(entries))
    ids = np.arange(70 * 30).reshape(70, 30) // 600
    Image.fromarray(ids.astype(np.uint8)).save(folder / "sub/two.png")
    return folder


def name_masks(photos, masks, out, *words):
    given = ["--panoptic", "--masks", masks, "--vocabulary", "red star, grass", "--stuff", ""]
    given += ["--input", photos, "--output", out, "--device", "cpu", *words]
    return predict.main([str(word) for word in given])


def test_masks_of_a_folder_get_names_and_are_merged(photos, masks, tmp_path, capsys):
    opts = (
        "--opts",
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD",
        "0.3",
        "--save",
        "masks",
        "panoptic",
    )
    assert name_masks(photos, masks, tmp_path / "out", *opts) == 0
    assert "2 of 2 segmented" in capsys.readouterr().out
    content = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert (content["info"]["alpha"], content["info"]["beta"]) == (1, 1)
    areas = [sorted(s["area"] for s in entry["segments_info"]) for entry in content["annotations"]]
    assert areas == [[1200, 1200], [300, 600, 600]]
    # Run lengths go down the columns: the better mask is the left half.
    ids = read_panoptic_png(tmp_path / "out/panoptic/one.png")
    assert len(np.unique(ids[:, :30])) == len(np.unique(ids[:, 30:])) == 1
    assert name_masks(photos, masks, tmp_path / "out", *opts, "--skip-existing") == 0
    (masks / "one.json").write_text("[]")
    assert name_masks(photos, masks, tmp_path / "out", *opts, "--skip-existing") == 2
    assert "results of other settings: masks has changed" in capsys.readouterr().err


def test_an_image_whose_masks_do_not_fit_fails_alone(photos, masks, tmp_path, capsys):
    (masks / "one.json").write_text('[{"size": [60, 40], "counts": [2400]}]')
    assert name_masks(photos, masks, tmp_path / "out", "--batch-size", "2") == 1
    said = capsys.readouterr()
    assert "1 of 2 segmented" in said.out and "one.json: mask 0 is no mask of an image" in said.err
    (masks / "sub/two.png").unlink()
    assert name_masks(photos, masks, tmp_path / "out") == 2
    assert "no masks of sub/two in" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (("--mode", "clip"), "--masks has no scores but CLIP's: leave out --mode"),
        (("--void-discount", "0.5"), "--masks has no scores but CLIP's"),
        (("--ray",), "--masks does not go with --ray"),
        (("--weights", "mini-open-panoptic"), "of no use with MODEL.MASK_GENERATOR.SOURCE masks"),
        (("--masks", "gone"), 'no folder of masks "gone"'),
    ],
)
def test_what_masks_do_not_go_with_is_refused(photos, masks, tmp_path, capsys, words, message):
    assert name_masks(photos, masks, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err


def test_masks_of_a_video_are_refused(photos, masks, tmp_path, capsys):
    video = make_video(tmp_path / "walk.mp4", count=1)
    assert name_masks(video, masks, tmp_path / "out") == 2
    assert "--masks does not go with a video" in capsys.readouterr().err
