"""Names of data sets lead to their vocabularies."""

from __future__ import annotations

import pytest

from clipself_seg.data.datasets.records import vocabulary_name
from clipself_seg.data.datasets.table import DATASETS
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError


def test_every_named_vocabulary_but_the_generated_ones_is_shipped():
    names = {files.vocabulary for files in DATASETS.values()} - {""}
    assert all(len(load_vocabulary(name)) > 18 for name in names)


def test_a_data_set_without_vocabulary_says_how_to_give_one():
    with pytest.raises(InputError, match="coco_2017_train_proposals.*vocabulary"):
        vocabulary_name("coco_2017_train_proposals")


def test_a_set_of_boxes_is_answered_with_the_panoptic_one_to_evaluate():
    with pytest.raises(
        InputError, match='no vocabulary here: did you mean "coco_2017_val_panoptic"'
    ):
        vocabulary_name("coco_2017_val")
