"""Sheets of dense maps: what stands where, and models by name."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from clipself_seg.clip import load_clip
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.prediction import dense_maps
from clipself_seg.prediction.dense_maps import TILE, DenseMapResults, load_models
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.loop import Index
from clipself_seg.visualization.dense_maps import palette


@functools.cache
def clip():
    return load_clip("ViT-Mini-8", "mini")


def drawn(folder, image, words="dog, grass", **changes):
    """The sheet of an image of one model under two names as an array, and what the index says."""
    clips = {"original": clip(), "student": clip()}
    settings = {"side": 64, "clusters": 3, "clips": clips, "folder": folder}
    results = DenseMapResults(**settings | changes, words=words and Vocabulary.of(words))
    source = ImageFile(folder / "a.jpg", "a.jpg", "a")
    _, entry = results.write(source, *results.predict([image]))
    results.write_index(Index([(source, entry)], [], {}, True, results.provenance))
    content = json.loads((folder / "dense_maps.json").read_text())
    return np.asarray(Image.open(folder / "a.png")), content


@pytest.fixture(scope="module")
def halves():
    """An image of 160 x 80 pixels: noise, and a grey half."""
    image = np.random.default_rng(0).integers(0, 256, (80, 160, 3), dtype=np.uint8)
    image[:, 80:] = 128
    return image


def test_rows_are_models_and_columns_image_clusters_and_words(tmp_path, halves):
    sheet, content = drawn(tmp_path, halves)
    # Four columns of 320 pixels and two rows of 160, with margins, titles and captions.
    assert sheet.shape[1] == 4 * (TILE + 8) + 8 and sheet.shape[0] > 2 * TILE // 2
    first, second = sheet[34:194], sheet[34 + 186 : 194 + 186]
    np.testing.assert_array_equal(first, second)
    small = Image.fromarray(halves).resize((TILE, TILE // 2), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(first[:, 8 : 8 + TILE], small)
    clusters = first[:, 16 + TILE : 16 + 2 * TILE].reshape(-1, 3)
    shown = {tuple(colour) for colour in clusters}
    assert 2 <= len(shown & {tuple(colour) for colour in palette(4)}) <= 3
    heat = first[:, 24 + 2 * TILE : 24 + 3 * TILE]
    assert heat.std() > 1
    assert set(content["models"]) == {"original", "student"} and content["words"] == [
        "dog",
        "grass",
    ]
    assert content["complete"] and content["images"]["a"]["file"].endswith("a.jpg")


def test_a_mini_model_says_below_the_maps_and_in_the_file_what_it_does_not_know(tmp_path, halves):
    sheet, content = drawn(tmp_path, halves)
    assert 'have no "dog": its answers mean little' in content["images"]["a"]["warning"]
    known = np.resize(halves, (128, 192, 3))
    quiet, content = drawn(tmp_path, known, words="grass, sand")
    assert "warning" not in content["images"]["a"]
    assert (sheet[-12:] < 99).any() and not (quiet[-12:] < 99).any()


def test_without_words_there_are_clusters_alone(tmp_path, halves):
    sheet, content = drawn(tmp_path, halves, words=None)
    assert sheet.shape[1] == 2 * (TILE + 8) + 8 and content["words"] == []


@pytest.mark.parametrize("shape", [(49, 128), (300, 2), (1, 1)])
def test_any_shape_of_image_has_a_sheet(tmp_path, shape):
    sheet, _ = drawn(tmp_path, np.full((*shape, 3), 90, np.uint8), clusters=1)
    assert sheet.ndim == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 60}, "60 is not a multiple .* take 56 or 64"),
        ({"clusters": 40}, "40 clusters in 32 cells: give fewer --clusters, or a larger --size"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, halves, changes, message):
    with pytest.raises(InputError, match=message):
        drawn(tmp_path, halves, words=None, **changes)


class Given(tuple):
    """What a CLIP would be loaded from, in place of one."""

    def to(self, device):
        return self


def test_models_have_the_title_that_is_given_or_their_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(dense_maps, "load_backbone", lambda *given: Given(given))
    loaded = load_models("ViT-Mini-8", ["original=mini", "mini-clipself", "a=b=c.pt"])
    weights = {"original": "mini", "mini-clipself": "mini-clipself", "a": "b=c.pt"}
    assert loaded == {title: ("ViT-Mini-8", given) for title, given in weights.items()}
    address = "https://host/a.pt?download=true"
    assert load_models("ViT-Mini-8", [address, f"b={address}"]) == {
        title: ("ViT-Mini-8", address) for title in (address, "b")
    }
    # A file whose name has the sign is no pair.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.pt").touch()
    assert load_models("ViT-Mini-8", ["a=b.pt"]) == {"a=b.pt": ("ViT-Mini-8", "a=b.pt")}
