"""Vocabularies of the synonym test, and its statistics by hand."""

from __future__ import annotations

import pytest

from clipself_seg.data.vocabulary import Vocabulary, class_names, load_vocabulary
from clipself_seg.evaluation.synonym_test import (
    renamed_vocabularies,
    synonym_results,
    synonym_vocabularies,
)

WORDS = ["sofa|couch|settee", "sky", "dog, puppy"]


def test_every_class_has_one_name_in_turn():
    names = [[own[0] for own in class_names(words)] for words in synonym_vocabularies(WORDS, 9)]
    assert names == [["sofa", "sky", "dog"], ["couch", "sky", "puppy"], ["settee", "sky", "dog"]]
    assert len(synonym_vocabularies(WORDS, 2)) == 2


def test_everything_but_the_names_stays():
    vocabulary = load_vocabulary("ade20k_150")
    _, second = synonym_vocabularies(vocabulary, 2)
    assert isinstance(second, Vocabulary) and second.name == vocabulary.name
    for before, after in zip(vocabulary.classes, second.classes, strict=True):
        assert after.names == (before.names[1 % len(before.names)],)
        assert (after.dataset_id, after.isthing) == (before.dataset_id, before.isthing)
        assert after.catseg_name is None  # which would stand for the name


def test_without_synonyms_there_is_no_test(caplog):
    assert synonym_vocabularies(["cat", "dog"], 9) == []
    assert renamed_vocabularies(["cat", "dog"], 9, "pets") == []
    assert 'every class of "pets" has one name' in caplog.text
    caplog.clear()
    assert renamed_vocabularies(WORDS, 0, "pets") == [] and not caplog.text


def test_mean_worst_and_spread():
    rounds = [{"mIoU": 40.0, "x": 1.0}, {"mIoU": 30.0}, {"mIoU": 38.0}]
    assert synonym_results(rounds) == {
        "synonyms-mean-mIoU": pytest.approx(36),
        "synonyms-worst-mIoU": 30,
        "synonyms-spread-mIoU": 10,
        "synonyms": 3,
    }
