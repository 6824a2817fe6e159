"""Examples of unseen classes that an evaluation draws from a training set: by the seed, and no others."""

import numpy as np
import pytest

from clipself_seg.config import load_config
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.drawn_examples import DrawnExamples
from clipself_seg.evaluation.panoptic.panoptic_evaluation import PanopticEvaluation
from clipself_seg.evaluation.semantic_evaluation import SemanticEvaluation
from lab.mini.writer import WorldSize, make_worlds

SOURCES = {"mini2_val_sem_seg": "mini2_train_sem_seg"}


def test_unseen_classes_are_given_as_many_as_asked_for_by_the_seed(worlds_root, caplog):
    make_worlds(worlds_root, WorldSize(train=8, val=1, base=1), processes=1)
    words = Vocabulary.load("mini2")

    def draw(number, seed=0, seen=words.seen):
        drawn = DrawnExamples(SOURCES, number, 0.75, seed)
        return drawn.added("mini2_val_sem_seg", words, seen).examples

    one, three = draw(1), draw(3)
    assert one == draw(1) and one != draw(1, seed=1)
    unseen = {entry.names[0] for entry in words.classes if not entry.seen}
    assert {examples.names[0] for examples in three} <= unseen
    firsts = {examples.names: examples.examples[0] for examples in three}
    assert {examples.names: examples.examples[0] for examples in one} == firsts
    assert {len(examples.examples) for examples in one} == {1}
    assert max(len(examples.examples) for examples in three) == 3
    assert 'examples of "' in caplog.text  # of classes that eight scenes have not three times
    assert draw(1, seen=np.ones(len(words), bool)) == ()
    with pytest.raises(InputError, match="unseen classes of mini2_val_sem_seg: set TEST.TRAIN_VOC"):
        draw(1, seen=None)
    assert DrawnExamples().added("mini2_val_sem_seg", words, words.seen) == words
    text = DrawnExamples(SOURCES, 1, 1.0, 0).text("mini2_val_sem_seg")
    assert "1 examples of each unseen class from mini2_train_sem_seg (seed 0, without" in text


def test_examples_are_drawn_before_a_panoptic_evaluation_begins(worlds_root):
    make_worlds(worlds_root, WorldSize(train=1, val=1, base=1), processes=1)
    name, keys = "mini_val_panoptic_with_sem_seg", ["TEST.EXAMPLES.NUMBER", "1"]
    keys += ["DATASETS.TEST", f"('{name}',)", "TEST.EXAMPLES.DATASETS", "('nope',)"]
    with pytest.raises(InputError, match='no data set "nope"'):
        PanopticEvaluation(load_config("mini/panoptic", keys)).data(name)


def test_each_evaluated_data_set_needs_one_that_examples_are_drawn_from():
    keys = ["TEST.EXAMPLES.NUMBER", "1", "TEST.EXAMPLES.DATASETS", "('mini_train_sem_seg',)"]
    with pytest.raises(InputError, match="EXAMPLES.DATASETS must be .* for each of DATASETS.TEST"):
        SemanticEvaluation(load_config("mini/zero_shot", keys))
