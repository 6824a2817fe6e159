"""Vocabularies: one grammar for words, files and JSON, and label files in the place of names."""

import json
import re

import numpy as np
import pytest

from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass, read_label_file
from clipself_seg.errors import InputError


@pytest.fixture
def write(tmp_path):
    """Write a JSON value to a file and return its path."""

    def write_json(value):
        path = tmp_path / "words.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write_json


@pytest.mark.parametrize("name", Vocabulary.available())
def test_every_built_in_vocabulary_is_readable(name):
    vocabulary = Vocabulary.load(name)
    assert vocabulary.name == name and vocabulary.about
    assert len(vocabulary.dataset_id_to_index) == len(vocabulary) > 0


def test_built_in_vocabularies_equal_the_reference(shared_dir):
    files = {path.stem: path for path in (shared_dir / "reference/vocabularies").glob("*.json")}
    shared = files.keys() & {*Vocabulary.available()}
    assert len(shared) == 13
    for name in shared:
        reference = json.loads(files[name].read_text())
        vocabulary = Vocabulary.load(name)
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
    things = tuple(entry for entry in Vocabulary.load(whole).classes if entry.isthing)
    assert Vocabulary.load(name).classes == things


def test_masks_follow_the_order_of_the_classes(write):
    classes = [{"names": ["sky"], "isthing": False}, {"names": ["dog"], "isthing": True}]
    vocabulary = Vocabulary.load(write({"name": "two", "classes": classes}))
    np.testing.assert_array_equal(vocabulary.thing, [False, True])
    with pytest.raises(InputError, match='does not say "seen" of "sky"'):
        _ = vocabulary.seen


@pytest.mark.parametrize(
    "content, message",
    [
        ([], "has no classes"),
        (["dog", "cat, "], "is 'cat, ', which has an empty name"),
        (["dog", "cat", "Dog|hound"], "the first name 'dog' is there twice"),
        ("[" * 100_000, "cannot be read as JSON (its brackets are nested too"),
        (
            '{"classes": [' + "[" * 500 + "]" * 501 + "}",
            "class 0 is [[[[[[[...]]]]]]], which is no",
        ),
        ({"classes": [{"names": ["a"]}], "abuot": ""}, 'unknown key "abuot": did you mean "about"'),
        ({"classes": [{"names": ["a"], "dataset_id": 1}, {"names": ["b"]}]}, "1 of 2 classes"),
        (
            {"classes": [{"names": ["a"], "dataset_id": 7}, {"names": ["b"], "dataset_id": 7}]},
            "dataset_id 7 is there twice",
        ),
    ],
)
def test_bad_content_is_named_with_the_file(write, content, message):
    path = write(content)
    with pytest.raises(InputError) as caught:
        Vocabulary.load(path)
    assert message in str(caught.value) and "words" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2 and len(str(caught.value)) < 500


def test_cat_segs_own_list_with_names_twice_is_read_as_it_is(tmp_path):
    names = Vocabulary.load("ade20k_847").first_names
    (tmp_path / "ade847.json").write_text(json.dumps(names))
    assert Vocabulary.load(tmp_path / "ade847.json").first_names == names
    (tmp_path / "mine.json").write_text(json.dumps(names))
    with pytest.raises(InputError, match="the first name '.*' is there twice"):
        Vocabulary.load(tmp_path / "mine.json")


def test_unknown_names_and_missing_files_are_refused(tmp_path):
    with pytest.raises(InputError, match='did you mean "coco_stuff_171"'):
        Vocabulary.load("coco_stuff")
    with pytest.raises(InputError, match="vocabulary file .*none.json is missing"):
        Vocabulary.load(tmp_path / "none.json")


def test_commas_separate_classes_and_bars_synonyms():
    words = Vocabulary.of(" dog | puppy,red car,sky, ")
    assert words.names() == (("dog", "puppy"), ("red car",), ("sky",))
    assert Vocabulary.of("dog").names() == (("dog",),)


def test_files_and_known_names_are_read(tmp_path):
    (tmp_path / "w.txt").write_text("\ufeffdog|puppy  # pets\n\n# nothing\ngrass, sky,\n", "utf-8")
    assert Vocabulary.of(str(tmp_path / "w.txt")).names() == (
        ("dog", "puppy"),
        ("grass",),
        ("sky",),
    )
    for name in ("w.json", "W2.JSON"):
        (tmp_path / name).write_text(json.dumps(["dog|puppy", "sky"]))
        assert Vocabulary.of(str(tmp_path / name)).names() == (("dog", "puppy"), ("sky",))
    assert Vocabulary.of("voc_20") == Vocabulary.load("voc_20")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty"),
        ("dog,c\udcffat", "class 1 of the vocabulary is .*, which is no text in UTF-8"),
        ("dog," + 10**5 * "x", "class 1 of .*, which has a name of 100000 letters, of at most 500"),
        ("dog,,sky", "class 1 of the vocabulary is '', which has an empty name"),
        ("dog, sky, Dog", "the vocabulary: the name 'dog' is there twice: leave one"),
        ("ade20k_15", "ade20k_150"),
        ("none.txt", "vocabulary file none.txt is missing"),
    ],
)
def test_what_cannot_be_meant_is_named(text, message):
    with pytest.raises(InputError, match=message):
        Vocabulary.of(text)


def test_a_name_of_500_letters_is_read():
    assert Vocabulary.of("x" * 500).first_names == ("x" * 500,)


FORMS = [
    ["dog|puppy", "cat, kitten"],
    ("dog , puppy", "cat |kitten"),
]


@pytest.mark.parametrize("entries", FORMS)
def test_every_way_in_has_the_same_grammar(entries, write):
    for words in (
        Vocabulary.of(entries),
        Vocabulary.of(word for word in entries),
        Vocabulary.of("dog|puppy, cat | kitten"),
        Vocabulary.of({"classes": list(entries)}),
        Vocabulary.load(write(entries)),
    ):
        assert words.names() == (("dog", "puppy"), ("cat", "kitten"))
        assert words.names(all_synonyms=False) == (("dog",), ("cat",))
        assert Vocabulary.of(words) is words is Vocabulary.load(words)
        assert words.dataset_id_to_index == {0: 0, 1: 1}


def test_names_in_lists_of_synonyms_are_not_split_again():
    odd = "dog, a pet|friend "
    vocabulary = Vocabulary.of([[odd, "puppy"], "a|b"])
    assert vocabulary.names() == ((odd, "puppy"), ("a", "b"))
    assert Vocabulary.of({"classes": [[odd, "puppy"], "a|b"]}).names() == vocabulary.names()
    assert vocabulary.names(all_synonyms=False, catseg_names=True) == ((odd,), ("a",))


def test_cat_segs_entry_of_a_class_takes_the_place_of_all_its_names_if_that_is_wanted():
    ade = Vocabulary.load("ade20k_150")
    names = ade.names(catseg_names=True)
    assert {len(synonyms) for synonyms in names} == {1} and names[7] == ("bed ",)
    assert ade.names() == tuple(entry.names for entry in ade.classes)
    full = Vocabulary.load("ade20k_847").names(catseg_names=True)
    assert sum(len(synonyms) > 1 for synonyms in full) == 217


def test_entries_of_other_types_are_no_classes_and_names_stand_twice_where_that_is_said():
    for entry in ([], ["dog", 3], 3, None, b"dog"):
        with pytest.raises(InputError, match=f"class 1 of .* is {re.escape(repr(entry))}, which"):
            Vocabulary.of(["sky", entry])
    with pytest.raises(InputError, match="3 is no text and no list of words"):
        Vocabulary.of(3)
    assert len(Vocabulary.of(["dog", "cat|dog"], repeats=True)) == 2


@pytest.mark.parametrize(
    "words, hint",
    [
        ("coco", "choose from: coco_80, coco_panoptic_133, coco_stuff_171"),
        ("ade20k", "choose from: ade20k_150, ade20k_847"),
        ("ADE20K-150", 'did you mean "ade20k_150"'),
    ],
)
def test_words_that_begin_the_name_of_a_vocabulary_are_asked_about(words, hint):
    with pytest.raises(InputError, match=f'no vocabulary "{words}": {hint}'):
        Vocabulary.of(words)
    assert Vocabulary.of(f"{words},").first_names == Vocabulary.of([words]).first_names


def test_text_of_another_encoding_is_named(tmp_path):
    (tmp_path / "w.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match="w.txt cannot be read as text in UTF-8"):
        Vocabulary.of(str(tmp_path / "w.txt"))
    (tmp_path / "w.txt").write_text("\n")
    with pytest.raises(InputError, match="w.txt is empty"):
        Vocabulary.of(str(tmp_path / "w.txt"))


def test_any_synonym_on_either_side_will_do_letter_by_letter_or_by_words():
    train = Vocabulary.of(["Traffic-Light", "wall_brick", "couch|sofa"])
    names = ["traffic light", "Traffic-Light", "wall brick ", "wall", "settee|sofa", "sofas"]
    test = Vocabulary("test", tuple(VocabularyClass(tuple(n.split("|")), 0) for n in names))
    assert test.seen_in(train).tolist() == [True, True, True, False, True, False]
    assert test.seen_in(train, exact=True).tolist() == [False, True, False, False, True, False]


def test_a_long_name_that_is_there_twice_is_shown_by_its_beginning(tmp_path):
    (tmp_path / "own.txt").write_text("\n".join(["x" * 400] * 2))
    with pytest.raises(InputError, match="own.txt: the name 'x{60}...' is there twice") as refused:
        Vocabulary.of(str(tmp_path / "own.txt"))
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
    assert read(tmp_path, "7:clouds\n6:dog\n5:kitty\n8:grass\n").first_names == ("kitty", "clouds")


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
    own = Vocabulary.load("openseg_cityscapes_19")
    lines = [f"{index}:{','.join(entry.names)}" for index, entry in enumerate(own.classes)]
    assert read(tmp_path, "\n".join(lines), own).classes == own.classes


@pytest.mark.parametrize(
    "text, warned",
    [("cup\nperson, man\nbowl\n", True), ("cup, bowl\n", False), ("cup\nbowl,\n", False)],
)
def test_a_line_of_two_classes_among_lines_of_one_is_warned_of(tmp_path, caplog, text, warned):
    (tmp_path / "w.txt").write_text(text)
    Vocabulary.load(tmp_path / "w.txt")
    assert ("w.txt: line 2 has 2 classes; write | between synonyms" in caplog.text) is warned
    assert bool(caplog.text) is warned
