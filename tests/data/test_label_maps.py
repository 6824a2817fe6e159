"""Label maps are read as they are, and what cannot be ground truth is named."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clipself_seg.data import masks
from clipself_seg.data.masks import read_indices, read_label_map
from clipself_seg.errors import InputError


def write(path, values, dtype=np.uint8):
    Image.fromarray(np.array(values, dtype=dtype)).save(path)
    return path


def read(path, **changes):
    return read_label_map(path, **{"num_classes": 4, "ignore_label": 255} | changes)


def test_8_and_16_bits_and_palettes_keep_their_values(tmp_path):
    labels = read(write(tmp_path / "a.png", [[0, 3], [255, 1]]))
    assert labels.dtype == np.int64 and labels.tolist() == [[0, 3], [255, 1]]
    for suffix in (".tif", ".png"):
        path = write(tmp_path / f"b{suffix}", [[846, 65535, 256]], np.uint16)
        assert read(path, num_classes=847, ignore_label=65535).tolist() == [[846, 65535, 256]]
    palette = Image.fromarray(np.array([[0, 2]], np.uint8), mode="L").convert("P")
    palette.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7])
    palette.save(tmp_path / "c.png")
    assert read(tmp_path / "c.png").tolist() == [[0, 2]]


def test_an_ignore_label_just_above_the_classes_is_allowed(tmp_path):
    path = write(tmp_path / "a.tif", [[458, 459]], np.uint16)
    assert read(path, num_classes=459, ignore_label=459).tolist() == [[458, 459]]


def test_missing_and_corrupt_files_are_named(tmp_path):
    with pytest.raises(InputError, match="lost.png is missing"):
        read(tmp_path / "lost.png")
    for suffix in (".png", ".tif"):
        path = write(tmp_path / f"a{suffix}", np.random.default_rng(0).integers(0, 4, (64, 64)))
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(InputError, match=f"a{suffix} cannot be decoded"):
            read(path)
    (tmp_path / "b.png").write_text("not a picture")
    with pytest.raises(InputError, match="b.png cannot be decoded"):
        read(tmp_path / "b.png")


def test_an_archives_map_is_unpacked_again_and_none_is_deleted(tmp_path):
    path = tmp_path / "a.png"
    for archive, remedy in ((True, "unpack its archive again"), (False, "restore it")):
        path.unlink(missing_ok=True)
        with pytest.raises(InputError, match=f"a.png is missing: .*{remedy}"):
            read_indices(path, archive)
        path.write_bytes(b"")
        with pytest.raises(InputError, match=f"a.png cannot be decoded .*{remedy}") as caught:
            read_indices(path, archive)
        assert "delete" not in str(caught.value)


def test_coloured_maps_are_refused(tmp_path):
    with pytest.raises(InputError, match="a.png has pixels of type RGB"):
        read(write(tmp_path / "a.png", np.zeros((2, 2, 3))))


def test_labels_outside_the_vocabulary_are_named_with_a_likely_cause(tmp_path):
    with pytest.raises(InputError, match="a.png has the value 4: .*\n.*count from 1"):
        read(write(tmp_path / "a.png", [[4, 1]]))
    with pytest.raises(InputError, match="b.png has the value 7, 9: .*\n.*not prepared"):
        read(write(tmp_path / "b.png", [[9, 7, 1, 255]]))
    with pytest.raises(InputError, match="255: .*\n.*ignore label"):
        read(write(tmp_path / "c.png", [[255, 1]]), ignore_label=200)


def test_another_size_than_the_image_is_refused(tmp_path):
    path = write(tmp_path / "a.png", [[0, 1, 2]])
    assert read(path, size=(3, 1)).shape == (1, 3)
    with pytest.raises(InputError, match="a.png is 3 x 1, its image b.jpg is 1 x 3"):
        read(path, size=(1, 3), image="b.jpg")


def test_a_large_vocabulary_cut_to_8_bits_shows_by_its_255s(tmp_path):
    whole = {"num_classes": 847, "ignore_label": 65535}
    assert read(write(tmp_path / "low.png", [[0, 254]]), **whole).tolist() == [[0, 254]]
    with pytest.raises(InputError, match="has 8 bits and the value 255, with 847 classes"):
        read(write(tmp_path / "cut.png", [[255, 3]]), **whole)


def test_a_map_may_be_as_large_as_its_image_and_not_larger(tmp_path, monkeypatch):
    monkeypatch.setattr(masks, "MAX_PIXELS", 5)
    path = write(tmp_path / "a.png", [[0, 3, 1], [255, 1, 0]])
    assert read(path, size=(3, 2)).shape == (2, 3)
    with pytest.raises(InputError, match="a.png is 3 x 2, which is more than the 5 pixels"):
        read(path)
