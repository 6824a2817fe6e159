"""Vocabularies: one grammar for words, files and JSON, and label files in the place of names."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest

from clipself_seg.data.vocabulary import (
    CLASS_FILES,
    Vocabulary,
    VocabularyClass,
    as_vocabulary,
    available_vocabularies,
    class_names,
    load_vocabulary,
    own_words,
    read_class_json,
    read_label_file,
    read_words,
    seen_by_exact_spelling,
    seen_by_plain_spelling,
)
from clipself_seg.errors import InputError

SIZES = {
    "ade20k_150": 150,
    "ade20k_847": 847,
    "coco_panoptic_133": 133,
    "coco_stuff_171": 171,
    "lvis_v1_1203": 1203,
    "objects365_v1": 365,
    "openseg_ade20k_150": 150,
    "openseg_coco_panoptic_133": 133,
    "ov_coco_65": 65,
    "pascal_context_459": 459,
    "pascal_context_59": 59,
    "voc_20": 20,
    "voc_20b_prompts": 59,
}


@pytest.fixture
def write(tmp_path):
    """Write a JSON value to a file and return its path."""

    def write_json(value):
        path = tmp_path / "words.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write_json


@pytest.mark.parametrize("name", available_vocabularies())
def test_every_built_in_vocabulary_is_readable(name):
    vocabulary = load_vocabulary(name)
    assert vocabulary.name == name and vocabulary.about
    assert len(vocabulary) == SIZES.get(name, len(vocabulary)) > 0
    assert len(vocabulary.dataset_id_to_index) == len(vocabulary)


def test_built_in_vocabularies_equal_the_reference(shared_dir):
    for name in SIZES:
        reference = json.loads((shared_dir / f"reference/vocabularies/{name}.json").read_text())
        vocabulary = load_vocabulary(name)
        if name == "lvis_v1_1203":  # the reference lacks the name of the annotation file
            assert reference["classes"][161]["names"] == ["horned_cow"]
            reference["classes"][161]["names"] = ["bull", "horned_cow"]
        assert [list(c.names) for c in vocabulary.classes] == [
            c["names"] for c in reference["classes"]
        ]
        for ours, theirs in zip(vocabulary.classes, reference["classes"]):
            assert ours.dataset_id == theirs.get("dataset_id", theirs["index"])
            assert ours.isthing == theirs.get("isthing")
            assert ours.frequency == theirs.get("frequency")
            assert ours.catseg_name == theirs.get("catseg_name")
            assert "novel" not in theirs or ours.seen is not theirs["novel"]


@pytest.mark.parametrize(
    "name, whole",
    [("coco_80", "coco_panoptic_133"), ("mini_things", "mini"), ("mini2_things", "mini2")],
)
def test_vocabularies_of_things_are_those_of_the_whole_ones(name, whole):
    things = tuple(entry for entry in load_vocabulary(whole).classes if entry.isthing)
    assert load_vocabulary(name).classes == things


def test_full_ade_warns_of_its_nine_double_names(caplog):
    with caplog.at_level(logging.WARNING):
        load_vocabulary("ade20k_847")
    words = "bag, pot, basket, screen, pier, control panel, pipe, grill, patio"
    assert words in caplog.text


def test_cat_segs_class_files_are_built_in_and_a_file_goes_before(tmp_path):
    full = read_class_json("datasets/ade847.json")
    assert len(full) == 847 and sum(", " in entry for entry in full) == 217
    assert read_class_json("datasets/ade150.json")[7:9] == ["bed ", "windowpane"]
    counts = [len(read_class_json(name)) for name in CLASS_FILES]
    assert counts == [171, 150, 847, 59, 459, 20, 59]
    (tmp_path / "coco.json").write_text('["dog, puppy"]')
    assert read_class_json(tmp_path / "coco.json") == ["dog, puppy"]
    for content in ('{"dog": 1}', "[" * 100_000):
        (tmp_path / "none.json").write_text(content)
        with pytest.raises(InputError, match="none.json"):
            read_class_json(tmp_path / "none.json")


def test_masks_follow_the_order_of_the_classes(write):
    classes = [{"names": ["sky"], "isthing": False}, {"names": ["dog"], "isthing": True}]
    vocabulary = load_vocabulary(write({"name": "two", "classes": classes}))
    np.testing.assert_array_equal(vocabulary.thing, [False, True])
    with pytest.raises(InputError, match='does not say "seen" of "sky"'):
        _ = vocabulary.seen


@pytest.mark.parametrize(
    "content, message",
    [
        ([], "is empty"),
        ({"classes": []}, "has no classes"),
        (["dog", "cat, "], "is 'cat, ', which has an empty name"),
        (["dog", "cat", "Dog|hound"], "more than once: dog"),
        ("[" * 100_000, "cannot be read as JSON (its brackets are nested too"),
        ('{"classes": [' + "[" * 500 + "]" * 501 + "}", "class 0: "),
        (
            {"classes": [{"names": ["a"]}], "abuot": ""},
            'unknown key "abuot": did you mean "about"',
        ),
        ({"classes": [{"names": ["a", "x" * 501]}]}, "has a name of 501 letters, of at most 500"),
        ({"classes": [{"names": ["a"], "index": 1}]}, "sort the classes"),
        ({"classes": [{"names": ["a"], "dataset_id": 1}, {"names": ["b"]}]}, "1 of 2 classes"),
        (
            {"classes": [{"names": ["a"], "dataset_id": 7}, {"names": ["b"], "dataset_id": 7}]},
            "more than once: 7",
        ),
    ],
)
def test_bad_content_is_named_with_the_file(write, content, message):
    path = write(content)
    with pytest.raises(InputError) as caught:
        load_vocabulary(path)
    assert message in str(caught.value) and "words" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2 and len(str(caught.value)) < 500


def test_cat_segs_own_list_with_names_twice_is_read_as_it_is(tmp_path, caplog):
    names = load_vocabulary("ade20k_847").names
    (tmp_path / "ade847.json").write_text(json.dumps(names))
    assert load_vocabulary(tmp_path / "ade847.json").names == names
    assert "more than once: bag" in caplog.text
    (tmp_path / "mine.json").write_text(json.dumps(names))
    with pytest.raises(InputError, match="more than once: bag"):
        load_vocabulary(tmp_path / "mine.json")


def test_unknown_names_and_missing_files_are_refused(tmp_path):
    with pytest.raises(InputError, match='did you mean "coco_stuff_171"'):
        load_vocabulary("coco_stuff")
    with pytest.raises(InputError, match="vocabulary file .*none.json is missing"):
        load_vocabulary(tmp_path / "none.json")


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


def test_a_semicolon_in_a_class_is_named(caplog):
    assert len(read_words("red star; grass")) == 1 and len(read_words("red star, grass")) == 2
    (record,) = caplog.records
    assert record.getMessage() == '"red star; grass" is one class: separate classes by commas'


def test_files_and_known_names_are_read(tmp_path):
    (tmp_path / "w.txt").write_text("\ufeffdog|puppy  # pets\n\n# nothing\ngrass, sky,\n", "utf-8")
    assert synonyms(read_words(str(tmp_path / "w.txt"))) == [("dog", "puppy"), ("grass",), ("sky",)]
    for name in ("w.json", "W2.JSON"):
        (tmp_path / name).write_text(json.dumps(["dog|puppy", "sky"]))
        assert synonyms(read_words(str(tmp_path / name))) == [("dog", "puppy"), ("sky",)]
    assert read_words("voc_20") == load_vocabulary("voc_20")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty"),
        ("dog,c\udcffat", "class 1 of the vocabulary is .*, which is no text in UTF-8"),
        ("dog," + 10**5 * "x", "class 1 of .*, which has a name of 100000 letters, of at most 500"),
        ("dog,,sky", "class 1 of the vocabulary is '', which has an empty name"),
        ("dog, sky, Dog", '"Dog" twice, in "dog" and in "Dog"'),
        ("ade20k_15", "ade20k_150"),
        ("none.txt", "vocabulary file none.txt is missing"),
    ],
)
def test_what_cannot_be_meant_is_named(text, message):
    with pytest.raises(InputError, match=message):
        read_words(text)


def test_a_name_of_500_letters_is_read():
    assert read_words("x" * 500).names == ("x" * 500,)


FORMS = [
    ["dog|puppy", "cat, kitten"],
    ("dog , puppy", "cat |kitten"),
    ["dog,  puppy", " cat|kitten "],
]


@pytest.mark.parametrize("entries", FORMS)
def test_every_way_in_has_the_same_grammar(entries, write):
    expected = [("dog", "puppy"), ("cat", "kitten")]
    assert list(class_names(entries)) == expected
    assert class_names(entries, all_synonyms=False) == (("dog",), ("cat",))
    for vocabulary in (
        Vocabulary.from_names(entries),
        own_words(entries),
        as_vocabulary(entries),
        as_vocabulary("dog|puppy, cat | kitten"),
        load_vocabulary(write(entries)),
    ):
        assert synonyms(vocabulary) == expected and as_vocabulary(vocabulary) is vocabulary
        assert list(class_names(vocabulary)) == expected
        assert vocabulary.dataset_id_to_index == {0: 0, 1: 1}


def test_names_of_vocabularies_and_in_lists_of_synonyms_are_not_split_again():
    odd = "dog, a pet|friend "
    vocabulary = Vocabulary("odd", (VocabularyClass((odd, "puppy"), 0),))
    assert class_names(vocabulary) == ((odd, "puppy"),)
    assert class_names(vocabulary, all_synonyms=False, catseg_names=True) == ((odd,),)
    assert class_names([[odd, "puppy"], "a|b"], nested=True) == ((odd, "puppy"), ("a", "b"))
    with pytest.raises(InputError, match="which is no string"):
        class_names([[odd, "puppy"]])


def test_cat_segs_entry_of_a_class_takes_the_place_of_all_its_names_if_that_is_wanted():
    ade = load_vocabulary("ade20k_150")
    found = class_names(ade, catseg_names=True)
    assert {len(names) for names in found} == {1} and found[7] == ("bed ",)
    assert class_names(ade) == tuple(entry.names for entry in ade.classes)
    full = class_names(load_vocabulary("ade20k_847"), catseg_names=True)
    assert sum(len(names) > 1 for names in full) == 217


@pytest.mark.parametrize("read", [class_names, own_words, Vocabulary.from_names])
def test_lists_are_read_once_and_a_string_or_entries_of_other_types_are_no_list(read):
    with pytest.raises(InputError, match='"dog, cat" is one string: give a list'):
        read("dog, cat")
    for entry in (["dog", "puppy"], 3, None, b"dog"):
        with pytest.raises(InputError, match=f"class 1 of .* is {re.escape(repr(entry))}, which"):
            read(["sky", entry])
    generated = read(name for name in ("dog", "cat", "sky"))
    assert class_names(generated, nested=True) == (("dog",), ("cat",), ("sky",))


def test_a_word_with_an_underscore_is_taken_with_a_comma():
    assert synonyms(read_words("ade20k_15,")) == [("ade20k_15",)]


def test_text_of_another_encoding_is_named(tmp_path):
    (tmp_path / "w.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match="w.txt cannot be read as text in UTF-8"):
        read_words(str(tmp_path / "w.txt"))
    (tmp_path / "w.txt").write_text("\n")
    with pytest.raises(InputError, match="w.txt is empty"):
        read_words(str(tmp_path / "w.txt"))


def test_any_synonym_on_either_side_will_do_letter_by_letter_or_by_words():
    train = Vocabulary.from_names(["Traffic-Light", "wall_brick", "couch|sofa"])
    names = ["traffic light", "Traffic-Light", "wall brick ", "wall", "settee|sofa", "sofas"]
    test = Vocabulary("test", tuple(VocabularyClass(tuple(n.split("|")), 0) for n in names))
    assert seen_by_plain_spelling(test, train).tolist() == [True, True, True, False, True, False]
    assert seen_by_exact_spelling(test, train).tolist() == [False, True, False, False, True, False]


def test_ade_against_coco_stuff():
    ade, stuff = load_vocabulary("ade20k_150"), load_vocabulary("coco_stuff_171")
    seen = seen_by_plain_spelling(ade, stuff)
    found = {name for name, known in zip(ade.names, seen) if known}
    assert seen.shape == (150,) and seen.sum() == len(found) == 49
    assert {"person", "tree", "traffic light", "table"} <= found
    assert {"sidewalk", "buffet"} <= found  # by their synonyms pavement and counter
    # COCO-Stuff's "wall-brick", "sky-other", "window-blind" and "couch" are other words.
    assert found.isdisjoint({"wall", "sky", "window", "sofa", "building", "plane"})


def test_a_long_name_that_is_there_twice_is_shown_by_its_beginning(tmp_path):
    (tmp_path / "own.txt").write_text("\n".join(["x" * 400] * 2))
    with pytest.raises(InputError, match="own.txt has .x{80}. twice") as refused:
        read_words(str(tmp_path / "own.txt"))
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


OWN = Vocabulary(
    "own",
    (
        VocabularyClass(("cat",), 5, isthing=True, catseg_name="a cat"),
        VocabularyClass(("sky",), 7, isthing=False),
    ),
)


def read(folder, text, vocabulary=OWN):
    path = folder / "words_with_prompt_eng.txt"
    path.write_text(text)
    return read_label_file(path, vocabulary)


def test_as_many_rows_as_classes_are_in_order(tmp_path):
    words = read(tmp_path, "0:invalid_class_id\n1:Cat, kitty\n\n2:sky,clouds,sky-other\n")
    assert [entry.names for entry in words.classes] == [
        ("Cat", "kitty"),
        ("sky", "clouds", "sky-other"),
    ]
    assert words.name == "words_with_prompt_eng" and words.thing.tolist() == [True, False]
    assert words.dataset_id_to_index == {5: 0, 7: 1} and words.classes[0].catseg_name is None
    # Of more rows that of the class's number counts.
    assert read(tmp_path, "7:clouds\n6:dog\n5:kitty\n8:grass\n").names == ("kitty", "clouds")


@pytest.mark.parametrize(
    "text, message",
    [
        ("1:cat\n", "has 1 classes, which are not the 2 of own"),
        ("1:cat\n2:sky\n7:clouds\n", r"not the 2 of own \(there is none of number 5\)"),
        ("1:cat\n2 sky\n", 'line 2: "2 sky" is not of the form "7:dog,puppy"'),
        ("1:cat\n1:sky\n", "line 2: the number 1 is there already"),
        ("0:invalid_class_id\n", "has no class"),
    ],
)
def test_other_files_are_refused_by_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)
    with pytest.raises(InputError, match="label file .*none.txt is missing"):
        read_label_file(tmp_path / "none.txt", OWN)


def test_a_built_in_list_written_as_a_label_file_comes_back(tmp_path):
    own = load_vocabulary("openseg_cityscapes_19")
    lines = [f"{index}:{','.join(entry.names)}" for index, entry in enumerate(own.classes)]
    assert read(tmp_path, "\n".join(lines), own).classes == own.classes
