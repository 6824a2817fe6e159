"""Nouns of proposals against ground truth."""

import numpy as np
import torch

from lab.precompute.pseudo_labels import Agreement, LabelledBoxes, agreement, pseudo_labels

OBJECTS = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], dtype=np.float32)
BOXES = np.array(
    [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.9], [21, 0, 31, 10], [50, 50, 60, 60]],
    dtype=np.float32,
)


def test_boxes_are_compared_with_the_object_around_which_they_are():
    image = LabelledBoxes(
        boxes=BOXES,
        names=["Dog", "cat", "dog", "", "dog"],
        kept=np.array([True, True, True, False, True]),
        objects=OBJECTS,
        object_names=["dog", "cat"],
    )
    nothing = LabelledBoxes(BOXES[:0], [], np.zeros(0, bool), OBJECTS, ["dog", "cat"])
    numbers = agreement([image, nothing, image])
    assert numbers == Agreement(boxes=6, right=2, kept=4, kept_right=2)
    assert str(numbers) == (
        "6 boxes around an object (IoU >= 0.5): 33.3 % have its name, of the 4 that are kept 50.0 %"
    )
    assert "0 boxes" in str(agreement([])) and "none have its name" in str(agreement([]))


def test_pseudo_labels_are_the_best_candidates_with_their_probability_among_all_nouns():
    logits = torch.tensor([[1.0, 3.0, 3.0], [0.0, 2.0, 1.0], [1.0, 0.0, 0.0]])
    labels, scores = pseudo_labels(logits)
    assert labels.tolist() == [1, 1, 0]
    torch.testing.assert_close(scores, logits.softmax(1).amax(1))
    candidates = torch.tensor([[True, False, True], [True, False, True], [False, False, False]])
    labels, scores = pseudo_labels(logits, candidates)
    assert labels.tolist() == [2, 2, -1]
    expected = torch.stack([logits[0].softmax(0)[2], logits[1].softmax(0)[2], torch.tensor(0.0)])
    torch.testing.assert_close(scores, expected)
    labels, scores = pseudo_labels(logits[:0])
    assert labels.shape == scores.shape == (0,)
