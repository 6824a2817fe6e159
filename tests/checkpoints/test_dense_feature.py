"""What files say about the dense feature of their weights, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipself_seg.checkpoints.dense_feature import (
    ANY,
    DenseFeature,
    feature_of_run,
    require_feature,
    stated_feature,
)
from clipself_seg.errors import InputError

THREE = DenseFeature("multi_value", 3)
HERE = Path("clip.pt")


@pytest.mark.parametrize("feature", [DenseFeature(), DenseFeature("value"), THREE, ANY])
def test_what_a_file_says_comes_back(feature):
    assert stated_feature(feature.entries(), HERE) == feature
    assert stated_feature({}, HERE) == DenseFeature("token", 5)  # of one block, whatever the number


@pytest.mark.parametrize(
    "stored",
    [
        {"dense_feature": "values"},
        {"dense_feature": ["token"]},
        {"dense_feature": 3},
        {"dense_feature": "multi_value", "dense_feature_blocks": "0"},
        {"dense_feature": "multi_value", "dense_feature_blocks": "9" * 5000},
        {"dense_feature": "multi_value", "dense_feature_blocks": "³"},
        {"dense_feature": "multi_value", "dense_feature_blocks": 3},
    ],
)
def test_what_no_file_says_is_refused_by_name(stored):
    with pytest.raises(InputError, match="clip.pt: its dense feature is .*fetch it again"):
        stated_feature(stored, HERE)


@pytest.mark.parametrize("wrong", [("values", 3), ("multi_value", 0), ("multi_value", True)])
def test_a_choice_that_is_none_is_refused(wrong):
    with pytest.raises(InputError, match="no dense feature|blocks of a dense feature"):
        DenseFeature(*wrong)


def test_other_weights_are_refused_with_both_names_and_the_way_out():
    with pytest.raises(InputError) as caught:
        require_feature(DenseFeature("value"), THREE, HERE)
    said = str(caught.value)
    assert (
        "clip.pt" in said
        and "multi_value of 3 blocks" in said
        and "MODEL.CLIP.DENSE is value" in said
    )
    assert "MODEL.CLIP.DENSE multi_value MODEL.CLIP.DENSE_BLOCKS 3" in said
    assert "MODEL.CLIP.DENSE_OVERRIDE True" in said
    with pytest.raises(InputError, match="multi_value of 2 blocks"):
        require_feature(THREE, DenseFeature("multi_value", 2), HERE)
    for stated in (THREE, ANY):
        require_feature(THREE, stated, HERE)
    require_feature(DenseFeature("value"), THREE, HERE, override=True)


def test_a_run_from_before_there_was_a_choice_is_of_token():
    assert feature_of_run({"SEED": 0}, HERE) == DenseFeature()
    keys = {"MODEL.CLIP.DENSE": "multi_value", "MODEL.CLIP.DENSE_BLOCKS": 2}
    assert feature_of_run(keys, HERE) == DenseFeature("multi_value", 2)
    with pytest.raises(InputError, match="its dense feature is"):
        feature_of_run(keys | {"MODEL.CLIP.DENSE_BLOCKS": [2]}, HERE)
