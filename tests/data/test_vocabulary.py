"""Vocabularies: the facts that are shipped, and the checks on what a user brings."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from clipself_seg.data.vocabulary import (
    CLASS_FILES,
    Vocabulary,
    available_vocabularies,
    load_vocabulary,
    read_class_json,
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
        path.write_text(json.dumps(value))
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
        assert [list(c.names) for c in vocabulary.classes] == [
            c["names"] for c in reference["classes"]
        ]
        for ours, theirs in zip(vocabulary.classes, reference["classes"]):
            assert ours.dataset_id == theirs.get("dataset_id", theirs["index"])
            assert ours.isthing == theirs.get("isthing")
            assert ours.frequency == theirs.get("frequency")
            assert ours.catseg_name == theirs.get("catseg_name")
            assert "novel" not in theirs or ours.seen is not theirs["novel"]


def test_coco_panoptic_has_80_things_and_gaps_in_its_ids():
    vocabulary = load_vocabulary("coco_panoptic_133")
    assert vocabulary.thing.sum() == 80 and vocabulary.thing[:80].all()
    assert vocabulary.dataset_id_to_index[13] == 11  # stop sign: COCO has no category 12
    assert vocabulary.names[-1] == "rug-merged" and vocabulary.dataset_id_to_index[200] == 132


@pytest.mark.parametrize("name, unseen", [("ov_coco_65", 17), ("lvis_v1_1203", 337)])
def test_open_vocabulary_benchmarks_tell_what_is_unseen(name, unseen):
    assert (~load_vocabulary(name).seen).sum() == unseen


def test_64_ade_classes_share_a_word_with_coco():
    coco = load_vocabulary("openseg_coco_panoptic_133")
    words = {name for entry in coco.classes for name in entry.names}
    ade = load_vocabulary("openseg_ade20k_150")
    assert sum(not words.isdisjoint(entry.names) for entry in ade.classes) == 64


def test_full_ade_warns_of_its_nine_double_names(caplog):
    with caplog.at_level(logging.WARNING):
        load_vocabulary("ade20k_847")
    words = "bag, pot, basket, screen, pier, control panel, pipe, grill, patio"
    assert words in caplog.text


def test_from_names_splits_synonyms_and_counts_the_classes():
    vocabulary = Vocabulary.from_names(["dog | puppy", "cat"])
    assert vocabulary.classes[0].names == ("dog", "puppy")
    assert vocabulary.names == ("dog", "cat")
    assert vocabulary.dataset_id_to_index == {0: 0, 1: 1}


def test_a_file_may_be_a_plain_list(write):
    vocabulary = load_vocabulary(write(["dog|puppy", "cat, kitten"]))
    assert vocabulary.name == "words" and vocabulary.names == ("dog", "cat")
    assert [entry.names[1] for entry in vocabulary.classes] == ["puppy", "kitten"]


def test_cat_segs_class_files_are_built_in_and_a_file_goes_before(tmp_path):
    full = read_class_json("datasets/ade847.json")
    assert len(full) == 847 and sum(", " in entry for entry in full) == 217
    assert read_class_json("datasets/ade150.json")[7:9] == ["bed ", "windowpane"]
    counts = [len(read_class_json(name)) for name in CLASS_FILES]
    assert counts == [171, 150, 847, 59, 459, 20, 59]
    (tmp_path / "coco.json").write_text('["dog, puppy"]')
    assert read_class_json(tmp_path / "coco.json") == ["dog, puppy"]
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
        ([], "has no classes"),
        ({"classes": []}, "has no classes"),
        ({"categories": []}, 'with a list "classes"'),
        ("dog", 'with a list "classes"'),
        (["dog", 3], "names only"),
        (["dog", "cat", "Dog|hound"], "more than once: dog"),
        ({"classes": [{"names": ["a"]}], "abuot": ""}, 'unknown key "abuot": did you mean "about"'),
        ({"classes": [{"names": ["a"], "isthings": True}]}, 'did you mean "isthing"'),
        ({"classes": ["dog"]}, "class 0: expected an object"),
        ({"classes": [{"names": "dog"}]}, '"names" has to be of type list'),
        ({"classes": [{"names": [" "]}]}, 'needs "names"'),
        ({"classes": [{"isthing": True}]}, 'needs "names"'),
        ({"classes": [{"names": ["a"], "dataset_id": True}]}, "of type int"),
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
    assert len(str(caught.value).splitlines()) <= 2


def test_double_names_can_be_allowed(write, caplog):
    classes = [{"names": ["bag", "sack"]}, {"names": ["bag", "purse"]}]
    path = write({"classes": classes, "allow_duplicate_names": True})
    assert load_vocabulary(path).names == ("bag", "bag")
    assert "more than once: bag" in caplog.text


def test_cat_segs_own_list_with_names_twice_is_read_as_it_is(tmp_path, caplog):
    names = load_vocabulary("ade20k_847").names
    (tmp_path / "ade847.json").write_text(json.dumps(names))
    assert load_vocabulary(tmp_path / "ade847.json").names == names
    assert "more than once: bag" in caplog.text
    (tmp_path / "mine.json").write_text(json.dumps(names))
    with pytest.raises(InputError, match="more than once: bag"):
        load_vocabulary(tmp_path / "mine.json")


def test_unknown_names_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(InputError, match='did you mean "coco_stuff_171"'):
        load_vocabulary("coco_stuff")
    with pytest.raises(InputError, match="no such vocabulary file"):
        load_vocabulary(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('["dog", ')
    with pytest.raises(InputError, match="cut.json: cannot be read as JSON"):
        load_vocabulary(tmp_path / "cut.json")
