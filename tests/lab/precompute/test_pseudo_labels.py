"""Nouns of proposals against ground truth."""

import numpy as np

from lab.precompute.pseudo_labels import Agreement, LabelledBoxes, agreement

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
