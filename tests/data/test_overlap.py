"""Seen by name: equal words only, checked by hand on ADE20K against COCO-Stuff."""

from __future__ import annotations

from clipself_seg.data.overlap import seen_by_name
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary


def test_any_synonym_on_either_side_will_do():
    train = Vocabulary.from_names(["couch|sofa", "dog"])
    test = Vocabulary.from_names(["settee|sofa", "couch", "puppy", "dogs"])
    assert seen_by_name(test, train).tolist() == [True, True, False, False]


def test_case_hyphens_and_spaces_do_not_matter_but_parts_do():
    train = Vocabulary.from_names(["Traffic-Light", "wall_brick"])
    test = Vocabulary.from_names(["traffic light", "wall brick ", "wall"])
    assert seen_by_name(test, train).tolist() == [True, True, False]


def test_ade_against_coco_stuff():
    ade, stuff = load_vocabulary("ade20k_150"), load_vocabulary("coco_stuff_171")
    seen = seen_by_name(ade, stuff)
    found = {name for name, known in zip(ade.names, seen) if known}
    assert seen.shape == (150,) and seen.sum() == len(found) == 49
    assert {"person", "tree", "traffic light", "table"} <= found
    assert {"sidewalk", "buffet"} <= found  # by their synonyms pavement and counter
    # COCO-Stuff's "wall-brick", "sky-other", "window-blind" and "couch" are other words.
    assert found.isdisjoint({"wall", "sky", "window", "sofa", "building", "plane"})


def test_a_vocabulary_has_seen_all_of_itself():
    words = load_vocabulary("pascal_context_459")
    assert seen_by_name(words, words).all()
