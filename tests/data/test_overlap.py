"""Seen by name and by raw synonym: equal words only, checked on ADE20K against COCO."""

from __future__ import annotations

from clipself_seg.data.overlap import seen_by_name, seen_by_synonym
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


# 0-based, in words: "apparel" (92) is seen because COCO's "person" lists "clothes".
SEEN_OF_ADE = """
    0 1 2 3 4 5 6 7 8 9 10 11 12 14 15 16 17 18 19 20 21 23 24 26 27 28 32 34 36 45 46 47 50 53 57
    60 61 65 66 67 69 72 76 80 81 82 83 89 90 92 98 114 118 120 124 125 126 127 131 135 136 142 147
    148"""


def test_raw_synonyms_give_the_published_64_classes_of_ade():
    ade, coco = load_vocabulary("openseg_ade20k_150"), load_vocabulary("openseg_coco_panoptic_133")
    seen = seen_by_synonym(ade, coco)
    assert seen.nonzero()[0].tolist() == [int(word) for word in SEEN_OF_ADE.split()]
    assert (seen & ade.thing).sum() == 44 and (seen & ~ade.thing).sum() == 20
    assert seen_by_synonym(coco, coco).all()


def test_raw_synonyms_are_compared_letter_by_letter():
    train = Vocabulary.from_names(["Traffic-Light", "couch|sofa"])
    test = Vocabulary.from_names(["traffic light", "Traffic-Light", "settee|sofa", "sofas"])
    assert seen_by_synonym(test, train).tolist() == [False, True, True, False]


def test_a_vocabulary_has_seen_all_of_itself():
    words = load_vocabulary("pascal_context_459")
    assert seen_by_name(words, words).all()
