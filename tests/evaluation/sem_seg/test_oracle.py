"""A model under oracle words chooses among the classes of the image alone, and numbers them as ever."""

from __future__ import annotations

import numpy as np
import torch

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.evaluation.sem_seg.oracle import OracleWords, present_classes, some_classes

WORDS = ["cat", "dog", "sky", "sea"]


class LastWord:
    """Labels everything as the last of its classes."""

    def set_vocabulary(self, words):
        self.words = words

    def __call__(self, samples, output):
        assert output == "labels" and len(samples) == 1
        return [{"sem_seg_labels": torch.full((2, 2), len(self.words) - 1)}]


def test_labels_are_those_of_the_whole_vocabulary():
    model, given = LastWord(), {"a": [0, 2], "b": [1], "c": []}
    for words in (WORDS, Vocabulary.from_names(WORDS)):
        oracle = OracleWords(
            model, words, lambda sample: np.array(given[sample["id"]], dtype=np.int64)
        )
        outputs = oracle([{"id": name} for name in given])
        assert [output["sem_seg_labels"].unique().tolist() for output in outputs] == [[2], [1], [0]]


def test_some_classes_keep_what_is_known_of_them():
    chosen = some_classes(Vocabulary.from_names(["cat|kitten", "dog", "sky"]), np.array([0, 2]))
    assert [entry.names for entry in chosen.classes] == [("cat", "kitten"), ("sky",)]
    assert [entry.dataset_id for entry in chosen.classes] == [0, 2]


def test_classes_of_a_label_map():
    truth = np.array([[3, 3, 255], [0, 255, 0]], dtype=np.uint8)
    assert present_classes(truth, 9, 255).tolist() == [0, 3]
    # 3 is the background, for which all classes from 3 on stand.
    assert present_classes(truth, 6, 255, background=3).tolist() == [0, 3, 4, 5]
    assert present_classes(truth[1:, :1], 6, 255, background=3).tolist() == [0]
    assert present_classes(np.full((2, 2), 255), 6, 255).tolist() == []
