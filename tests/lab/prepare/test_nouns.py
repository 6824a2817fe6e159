"""Noun phrases of captions, and the nouns that they name."""

import json
import random
import sys
import types

import pytest

from clipself_seg.errors import InputError
from lab.prepare.nouns import (
    NounsOfCaptions,
    frequent_nouns,
    head_nouns,
    nltk_tagger,
    noun_phrases,
    read_captions,
    read_nouns,
    single_phrases,
)


def phrases(text):
    """Of a caption written as word/TAG word/TAG."""
    return noun_phrases(text, lambda caption: [tuple(w.rsplit("/", 1)) for w in caption.split()])


@pytest.mark.parametrize(
    "text, expected",
    [
        # Articles, numbers and possessives before a phrase are not part of it.
        ("Two/CD Large/JJ dogs/NNS and/CC her/PRP$ cat/NN", ["large dogs", "cat"]),
        # The last phrase does not need a full stop.
        ("a/DT dog/NN on/IN wet/JJ grass/NN", ["dog", "wet grass", "dog on wet grass"]),
        # No noun, no phrase; an adjective without one is none either.
        ("it/PRP is/VBZ red/JJ ./.", []),
        ("", []),
        # Prepositions make longer phrases, in which articles stay.
        (
            "a/DT man/NN on/IN a/DT surf/NN board/NN in/IN water/NN",
            ["man", "surf board", "water", "man on a surf board in water"],
        ),
        ("dogs/NNS run/VBP on/IN grass/NN", ["dogs", "grass"]),
        ("a/DT dog/NN by/IN ./.", ["dog"]),
        # Twice the same is once.
        ("a/DT dog/NN and/CC the/DT Dog/NN", ["dog"]),
    ],
)
def test_phrases_by_hand(text, expected):
    assert phrases(text) == expected


@pytest.fixture
def fresh():
    nltk_tagger.cache_clear()
    yield
    nltk_tagger.cache_clear()


def stand_in(monkeypatch, pos_tag):
    """A package nltk with this tagger."""
    package, tokenize = types.ModuleType("nltk"), types.ModuleType("nltk.tokenize")
    package.pos_tag, package.tokenize = pos_tag, tokenize
    tokenize.TreebankWordTokenizer = lambda: types.SimpleNamespace(tokenize=str.split)
    monkeypatch.setitem(sys.modules, "nltk", package)
    monkeypatch.setitem(sys.modules, "nltk.tokenize", tokenize)


def test_without_nltk_or_its_model_the_way_to_get_it_is_named(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(InputError, match=r"nltk is not installed.*pip install .*captions"):
        nltk_tagger()

    def fail(words):
        raise LookupError("Resource averaged_perceptron_tagger_eng not found")

    stand_in(monkeypatch, fail)
    with pytest.raises(InputError, match="nltk.downloader averaged_perceptron_tagger_eng"):
        nltk_tagger()


# Captions tagged by hand, for a tagger that learns from nothing else.
TAGGED = """
a/DT large/JJ cat/NN sits/VBZ on/IN a/DT chair/NN
the/DT small/JJ dog/NN runs/VBZ on/IN the/DT grass/NN
a/DT dog/NN ,/, a/DT large/JJ dog/NN and/CC a/DT cat/NN
the/DT large/JJ chair/NN stands/VBZ on/IN grass/NN
"""


@pytest.fixture
def trained_tagger(tmp_path, monkeypatch):
    """NLTK with a small tagger of its own kind where it looks for the one that it downloads."""
    nltk = pytest.importorskip("nltk", "3.9")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    folder = tmp_path / "taggers" / "averaged_perceptron_tagger_eng"
    folder.mkdir(parents=True)
    tagger = nltk.PerceptronTagger(load=False)
    random.seed(0)  # it learns from the captions in a shuffled order
    tagger.train(
        [[nltk.str2tuple(word) for word in s.split()] for s in TAGGED.splitlines() if s], nr_iter=50
    )
    model = {
        "weights": tagger.model.weights,
        "tagdict": tagger.tagdict,
        "classes": sorted(tagger.classes),
    }
    for name, content in model.items():
        path = folder / f"averaged_perceptron_tagger_eng.{name}.json"
        path.write_text(json.dumps(content))


def test_nltk_itself_tags_the_words_of_a_caption(fresh, trained_tagger):
    tagger = nltk_tagger()
    assert tagger("a cat, a dog") == [
        ("a", "DT"),
        ("cat", "NN"),
        (",", ","),
        ("a", "DT"),
        ("dog", "NN"),
    ]
    assert noun_phrases("A large dog sits on the grass", tagger) == ["large dog", "grass"]


def test_captions_are_read_with_phrases_where_there_are_some(tmp_path):
    path = tmp_path / "captions.json"
    plain = {"image_id": 3, "caption": "Grass."}
    blank = [{"image_id": image, "caption": " "} for image in (3, "b")]
    entries = [plain | {"phrases": ["grass"]}, *blank, plain | {"caption": " Grass.\n"}]
    path.write_text(json.dumps({"annotations": entries}))
    captions = read_captions(path)
    assert captions[3].texts == ["Grass.", "Grass."] and captions[3].phrases == [["grass"], None]
    assert list(captions) == [3]
    for wrong in ({"phrases": [3]}, {"phrases": 3}, {"caption": None}, {"image_id": None}):
        path.write_text(json.dumps({"annotations": [plain | wrong]}))
        with pytest.raises(InputError, match="captions.json: annotations.0..* has to be"):
            read_captions(path)


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
