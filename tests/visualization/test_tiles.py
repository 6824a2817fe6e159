"""Rows of images beside label maps."""

import numpy as np
from PIL import Image

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.visualization.tiles import Row, label_rows, write_tiles


def halves(vocabulary, first, second):
    """An image of 130 x 100 pixels, and a label map of two halves."""
    image = np.full((100, 130, 3), 120, np.uint8)
    names = list(vocabulary.first_names)
    labels = np.full((100, 130), names.index(first))
    labels[50:] = -1 if second is None else names.index(second)
    return image, labels


def test_tiles_have_names_and_a_legend_of_all_classes():
    vocabulary = Vocabulary.load("mini")
    image, truth = halves(vocabulary, "grass", "sand")
    _, said = halves(vocabulary, "water", None)
    (row,) = label_rows(vocabulary, [image], {"ground truth": [truth], "model": [said]})
    assert list(row.tiles) == ["image", "ground truth", "model"]
    assert {tile.shape for tile in row.tiles.values()} == {(300, 390, 3)}
    assert {entry.name for entry in row.legend} == {"grass", "sand", "water", "no label"}
    # White letters in either half, and in the half that has a label.
    white = [(row.tiles[t] == 255).all(-1) for t in ("ground truth", "model")]
    assert all(half.sum() > 30 for half in (white[0][:140], white[0][160:], white[1][:140]))
    assert white[1][160:].sum() == 0


def test_tiles_are_written_as_one_image_with_titles(tmp_path):
    image = np.zeros((30, 40, 3), np.uint8)
    write_tiles([Row({"a": image, "b": image}), Row({"a": image, "b": image})], tmp_path / "a.png")
    written = np.asarray(Image.open(tmp_path / "a.png"))
    assert written.shape[1] == 2 * (40 + 8) + 8 and (written == 0).all(-1).sum() > 4 * 30 * 40
