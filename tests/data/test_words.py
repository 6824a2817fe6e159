"""Words as people type them: separators, files, known vocabularies, and what is refused."""

from __future__ import annotations

import json
import re

import pytest

from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.data.vocabulary_text import own_words, read_words
from clipself_seg.errors import InputError


def synonyms(vocabulary):
    return [entry.names for entry in vocabulary.classes]


def test_commas_separate_classes_and_bars_synonyms():
    assert synonyms(read_words(" dog | puppy,red car,sky, ")) == [
        ("dog", "puppy"),
        ("red car",),
        ("sky",),
    ]
    assert synonyms(read_words("dog")) == [("dog",)]
    assert synonyms(own_words(["dog|puppy", "sky, heaven"])) == [
        ("dog", "puppy"),
        ("sky", "heaven"),
    ]


def test_files_and_known_names_are_read(tmp_path):
    (tmp_path / "w.txt").write_text("\ufeffdog|puppy  # pets\n\n# nothing\ngrass, sky,\n", "utf-8")
    assert synonyms(read_words(str(tmp_path / "w.txt"))) == [("dog", "puppy"), ("grass",), ("sky",)]
    (tmp_path / "w.json").write_text(json.dumps(["dog|puppy", "sky"]))
    assert synonyms(read_words(str(tmp_path / "w.json"))) == [("dog", "puppy"), ("sky",)]
    assert read_words("voc_20") == load_vocabulary("voc_20")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty"),
        (" , ", "empty"),
        ("dog,,sky", 'empty word in ""'),
        ("dog|,sky", 'empty word in "dog\\|"'),
        ("dog, sky, Dog", '"Dog" twice, in "dog" and in "Dog"'),
        ("dog|puppy, puppy", '"puppy" twice'),
        ("ade20k_15", "ade20k_150"),
        ("none.txt", "none.txt: no such vocabulary file"),
        ("none.json", "none.json: no such vocabulary file"),
    ],
)
def test_what_cannot_be_meant_is_named(text, message):
    with pytest.raises(InputError, match=message):
        read_words(text)


@pytest.mark.parametrize("entry", [["dog", "puppy"], 3, None, b"dog"])
def test_entries_that_are_no_strings_are_named(entry):
    shown = re.escape(repr(entry))
    with pytest.raises(InputError, match=f"the vocabulary has {shown}, which is no string"):
        own_words(["sky", entry])


def test_a_word_with_an_underscore_is_taken_with_a_comma():
    assert synonyms(read_words("ade20k_15,")) == [("ade20k_15",)]


def test_text_of_another_encoding_is_named(tmp_path):
    (tmp_path / "w.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match="w.txt: cannot be read as text in UTF-8"):
        read_words(str(tmp_path / "w.txt"))
    (tmp_path / "w.txt").write_text("\n")
    with pytest.raises(InputError, match="w.txt is empty"):
        read_words(str(tmp_path / "w.txt"))
