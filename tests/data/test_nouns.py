"""Nouns of lists and of captions."""

from __future__ import annotations

import pytest

from clipself_seg.data.captions import (
    NounsOfCaptions,
    frequent_nouns,
    head_nouns,
    read_nouns,
    single_phrases,
)
from clipself_seg.errors import InputError

TAGS = {
    **dict.fromkeys(("a", "the"), "DT"),
    **dict.fromkeys(("large", "red"), "JJ"),
    **dict.fromkeys(("dog", "teddy", "bear", "beach"), "NN"),
    "they": "PRP",
    "on": "IN",
    "sits": "VBZ",
}


def tagger(caption):
    return [(word, TAGS[word.lower()]) for word in caption.split()]


def test_a_list_has_a_noun_a_line_before_the_first_comma(tmp_path):
    path = tmp_path / "nouns.txt"
    path.write_text("dog,hound\n\nteddy bear, 3\n dog \ngrass\n")
    assert read_nouns(path) == ["dog", "teddy bear", "grass"]
    path.write_text("\n,\n")
    with pytest.raises(InputError, match="nouns.txt has no noun"):
        read_nouns(path)
    with pytest.raises(InputError, match="list of nouns .* is missing"):
        read_nouns(tmp_path / "none.txt")


def test_head_nouns_have_no_adjectives_and_no_pronouns():
    assert head_nouns("A large red Dog sits on the teddy bear", tagger) == ["dog", "teddy bear"]
    assert head_nouns("they sits on a dog", tagger) == ["dog"]
    assert head_nouns("", tagger) == []


def test_phrases_that_prepositions_join_are_left_out():
    phrases = ["large dog", "dog house", "beach", "house", "large dog on a beach", "dog"]
    assert single_phrases(phrases) == ["large dog", "dog house", "beach", "house", "dog"]
    assert single_phrases([]) == []


def test_frequent_nouns_are_counted_once_a_caption_and_plurals_as_singulars():
    captions = [
        ["dogs", "dog", "grass"],
        ["dogs", "close photo"],
        ["dog", "berries", "pants"],
        ["berry", "grass", "photo"],
    ]
    assert frequent_nouns(captions, 10) == ["dog", "berry", "grass", "pants"]
    assert frequent_nouns(captions, 2) == ["dog", "berry"]
    assert frequent_nouns([["teddy bears"], ["teddy bear"]], 9) == ["teddy bear"]


def test_nouns_of_captions_are_whole_words_and_may_be_plurals():
    nouns = ["dog", "teddy bear", "bear", "t-shirt", "grass", "dogs house", "sky"]
    find = NounsOfCaptions(nouns)
    assert find(["Two dogs, house of Teddy bears."]) == [0, 1, 2]
    assert find(["a hotdog; grasses", "the T-shirt!"]) == [3, 4]
    assert find(["a dog house", "dogs house"]) == [0, 5]
    assert find([]) == [] == find(["", "sk y"])
