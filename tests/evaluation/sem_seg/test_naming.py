"""Naming of true masks by the majority of their pixels."""

from __future__ import annotations

import numpy as np
import pytest

from clipself_seg.evaluation.sem_seg.naming import mask_names, naming_accuracy


def test_a_mask_is_named_as_most_of_its_pixels_are():
    # Class 0 is mostly called 2; 1 is tied, which is no recognition; 2 is itself; 3 is not there.
    matrix = np.array([[2, 0, 3, 0], [1, 1, 0, 0], [4, 0, 5, 0], [0, 0, 0, 0]])
    names = mask_names(matrix)
    assert names.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_accuracy_is_of_the_masks_of_all_images():
    images = [np.array([[5, 1], [0, 3]]), np.array([[1, 2], [0, 0]]), np.array([[9, 0], [7, 1]])]
    accuracy = naming_accuracy(sum(mask_names(matrix) for matrix in images))
    assert accuracy == pytest.approx([2 / 3, 1 / 2])
    assert np.isnan(naming_accuracy(np.zeros((2, 2), dtype=np.int64))).all()
