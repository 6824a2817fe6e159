"""explore: one page of all images that can be read, and models as they are typed."""

import numpy as np
import pytest
from PIL import Image

from clipself_seg.commands import explore


def run(*words) -> int:
    return explore.explore([str(word) for word in words])


def test_a_page_is_written_and_bad_images_are_named(tmp_path, capsys):
    Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(tmp_path / "one.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "one.png").read_bytes()[:60])
    page = tmp_path / "out" / "page.html"
    words = ("--words", "dog|puppy, grass", "--model", "mini-clipself", "--size", 64)
    assert run(tmp_path, *words, "-o", page) == 1
    said = capsys.readouterr()
    assert f"1 of 2 images, 1 models: {page}, 0." in said.out
    assert "broken.png cannot be decoded" in said.err and "one.png" in page.read_text()
    assert run(tmp_path / "broken.png", *words, "-o", tmp_path / "none.html") == 2
    assert not (tmp_path / "none.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--stuff", "grass"), "--stuff needs --panoptic"),
        (("--panoptic", "--stuff", "water", "--model", "mini"), 'stuff "water" is not in the voc'),
    ],
)
def test_what_does_not_go_is_said_in_a_sentence(words, message, tmp_path, capsys):
    Image.new("RGB", (40, 60)).save(tmp_path / "one.png")
    typed = (tmp_path / "one.png", "--words", "red star, grass", *words, "-o", tmp_path / "p.html")
    assert run(*typed) == 2 and message in capsys.readouterr().err


def test_without_a_model_there_is_the_original_and_clipselfs_where_it_is(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    assert explore._default_models() == ["eva02-vitb16"]
    file = "eva_vitb16_coco_clipself_patches.pt"
    said = capsys.readouterr().err
    assert said.startswith("no --model: eva02-vitb16, licence MIT") and said.count("\n") == 1
    assert f"fetch {file} from https://" in said and f"into {tmp_path} to see CLIPSelf's" in said
    (tmp_path / file).touch()
    assert explore._default_models() == ["eva02-vitb16", "clipself-eva02-vitb16-coco-patches"]
    assert "non-commercial" in capsys.readouterr().err
