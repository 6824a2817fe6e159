"""predict --panoptic: segments that can be read back, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from clipself_seg.commands import predict
from clipself_seg.data.masks import read_panoptic_png
from clipself_seg.prediction.panoptic import panoptic_words
from tests.prediction.test_semantic import OPTS


def test_panoptic_results_of_a_folder_can_be_read_back(panoptic, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes((photos / "one.jpg").read_bytes()[:300])
    words = ("--vocabulary", "green ring, blue ring|hoop, grass", "--stuff", "grass")
    fusion = ("--alpha", "0.2", "--beta", "0.4", "--trained", "mini_base", "--void-discount", "0.5")
    assert panoptic(*words, *fusion, "--input", photos) == 1
    said = capsys.readouterr()
    assert "2 of 3 segmented" in said.out and "broken.jpg cannot be decoded" in said.err
    assert "taken for" not in said.err
    out = tmp_path / "out"
    content = json.loads((out / "panoptic.json").read_text())
    info = content["info"]
    assert (info["alpha"], info["beta"], info["trained"]) == (0.2, 0.4, "mini_base")
    assert info["void_discount"] == 0.5
    assert info["seen"] == ["green ring", "grass"] and info["complete"] and len(info["failed"]) == 1
    assert [c["isthing"] for c in content["categories"]] == [1, 1, 0]
    assert [i["file_name"] for i in content["images"]] == ["one.jpg", "sub/two.png"]
    for entry, size in zip(content["annotations"], ((40, 60), (70, 30))):
        ids = read_panoptic_png(out / "panoptic" / entry["file_name"])
        assert ids.shape == size
        assert set(np.unique(ids)) - {0} == {info["id"] for info in entry["segments_info"]}
        assert min(Image.open(out / "overlays" / entry["file_name"]).size) >= 100


@pytest.mark.parametrize(
    "words, how, message",
    [
        (("--vocabulary", ""), {}, "empty"),
        (("--vocabulary", "dog, sky", "--stuff", "sea"), {}, 'stuff "sea" is not in the voc'),
        (("--vocabulary", "ade20k_150"), {}, "does not tell things from stuff"),
        (("--vocabulary", "dog", "--alpha", "1.5"), {}, "ALPHA must be in [0, 1], got 1.5"),
        (("--vocabulary", "dog", "--mode", "clap"), {}, 'cannot be "clap"; did you mean "clip"'),
        (("--vocabulary", "dog", "--mode", "clip", "--beta", "1"), {}, "belong to the mode fused"),
        (("--vocabulary", "dog", "--scores"), {}, "--scores does not go with --panoptic"),
        (("--vocabulary", "dog", "--trained", "no"), {}, 'no vocabulary "no"'),
        (("--vocabulary", "dog", "--clip-weights", "no.pt"), {}, "no.pt"),
        (("--vocabulary", "dog"), {"opts": OPTS}, "CATSeg, which finds no segments"),
        (("--vocabulary", "dog"), {"weights": "none.pth"}, "no checkpoint at none.pth"),
    ],
)
def test_bad_panoptic_input_is_a_line_and_status_2(
    panoptic, photos, tmp_path, capsys, words, how, message
):
    assert panoptic(*words, "--input", photos, **how) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") <= 2
    assert not (tmp_path / "out").exists()


def test_the_kinds_of_a_built_in_vocabulary_are_its_own_and_shortened(capsys):
    predict._say_kinds(panoptic_words("mini"))
    said = "green square and 28 more; for stuff: grass, water, sand, bricks, "
    assert said in capsys.readouterr().err


def test_panoptic_options_alone_are_refused(run, photos, capsys):
    for option in ("--stuff", "--clip-weights", "--alpha", "--void-discount", "--masks"):
        assert run("--vocabulary", "dog", option, "1", "--input", photos) == 2
        assert f"{option} needs --panoptic" in capsys.readouterr().err
