"""Tables of similarities: written and read again, and those that are shipped."""

from __future__ import annotations

import base64
import json
import lzma
import zlib
from functools import partial

import numpy as np
import pytest

from clipself_seg.data.similarity import (
    FOLDER,
    SHIPPED,
    load_similarity,
    similarity_of,
    write_similarity,
)
from clipself_seg.data.vocabulary import FOLDER as VOCABULARIES
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.data.wordnet import UNKNOWN
from clipself_seg.errors import InputError

WORDS = Vocabulary.from_names(["sofa", "chair", "sky"], name="words")
DISTANCES = np.array([[0, 2, UNKNOWN], [2, 0, 4], [UNKNOWN, 4, 0]], dtype=np.uint8)


@pytest.fixture
def table(tmp_path):
    write_similarity(tmp_path / "table.json", WORDS, DISTANCES, "ten synsets")
    return tmp_path / "table.json"


def test_a_table_is_read_as_it_was_written(table):
    similarity = load_similarity(str(table), WORDS)
    assert similarity == pytest.approx(np.array([[1, 1 / 3, 0], [1 / 3, 1, 1 / 5], [0, 1 / 5, 1]]))
    content = json.loads(table.read_text())
    assert content["source"] == "ten synsets" and "Princeton" in content["licence"]
    before = table.read_bytes()
    write_similarity(table, WORDS, DISTANCES, "ten synsets")
    assert table.read_bytes() == before


def test_similarity_of_distances():
    assert similarity_of(np.array([0, 1, 3, UNKNOWN])).tolist() == [1, 0.5, 0.25, 0]


def pack(content, compress=lzma.compress):
    return base64.b85encode(compress(content)).decode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": "0"}, 'other classes than vocabulary "words" has now'),
        ({"classes": 4}, "other classes"),
        ({"distances": pack(b"12")}, "not those of 3 classes"),
        # A bomb is not unpacked beyond what three classes need.
        ({"distances": pack(bytes(1 << 24))}, "not those of 3 classes"),
        ({"distances": pack(b"12", zlib.compress)}, "not those of 3 classes"),
        ({"distances": pack(b"1", partial(lzma.compress, preset=9))}, "not those of 3 classes"),
        ({"distances": "nothing"}, "not those of 3 classes"),
        ({"distances": 7}, "not those of 3 classes"),
    ],
)
def test_what_does_not_fit_is_refused(table, changes, message):
    table.write_text(json.dumps(json.loads(table.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        load_similarity(str(table), WORDS)


def test_what_is_no_table_is_refused_with_the_command(table):
    table.write_text("[]")
    with pytest.raises(InputError, match="clipself-seg data similarity words --wordnet FOLDER"):
        load_similarity(str(table), WORDS)
    with pytest.raises(InputError, match='no table.*"words": make one'):
        load_similarity(SHIPPED, WORDS)


def test_every_shipped_vocabulary_has_a_table():
    assert {path.name for path in VOCABULARIES.glob("*.json")} == {
        path.name for path in FOLDER.glob("*.json")
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_tables_are_of_the_vocabularies_as_they_are(path):
    vocabulary = load_vocabulary(path.stem)
    similarity = load_similarity(SHIPPED, vocabulary)
    assert similarity.shape == (len(vocabulary),) * 2 and (similarity == similarity.T).all()
    assert (similarity.diagonal() == 1).all() and ((similarity >= 0) & (similarity <= 1)).all()
    content = json.loads(path.read_text())
    assert "WordNet 3.0" in content["source"] and "Princeton" in content["licence"]


def test_near_classes_are_more_alike_than_far_ones():
    vocabulary = load_vocabulary("ade20k_150")
    similarity = load_similarity(SHIPPED, vocabulary)
    sofa, chair, sky = (vocabulary.names.index(name) for name in ("sofa", "armchair", "sky"))
    assert similarity[sofa, chair] > 3 * similarity[sofa, sky] > 0


def test_shipped_tables_are_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.json")) < 200_000
