"""dense_maps: a picture an image, and a bad image does not stop the others."""

from __future__ import annotations

import numpy as np
from PIL import Image

from clipself_seg.commands import dense_maps


def test_images_are_drawn_and_bad_ones_named(tmp_path, capsys):
    Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(tmp_path / "one.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "one.png").read_bytes()[:60])
    words = [tmp_path / "one.png", tmp_path / "broken.png", "--models", "mini", "--size", 64]
    words += ["--clusters", 2, "--words", "dog|puppy, grass", "--output", tmp_path / "out"]
    assert dense_maps.main([str(word) for word in words]) == 1
    said = capsys.readouterr()
    assert "1 of 2 drawn" in said.out and "broken.png cannot be decoded" in said.err
    written = {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".lock"}
    assert written == {"one.png", "dense_maps.json"}


def test_wrong_models_are_told_in_a_sentence(tmp_path, capsys):
    Image.new("RGB", (40, 60)).save(tmp_path / "one.png")
    words = [
        str(tmp_path / "one.png"),
        "--models",
        "mini-clipslef",
        "--output",
        str(tmp_path / "o"),
    ]
    assert dense_maps.main(words) == 2
    assert 'did you mean "mini-clipself"' in capsys.readouterr().err
