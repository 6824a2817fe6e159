"""Naming accuracy: each true mask is given the class that most of its pixels are predicted as.

Legend: K classes. The mask of a class in an image is all of its pixels there.
"""

from __future__ import annotations

import numpy as np


def mask_names(matrix: np.ndarray) -> np.ndarray:
    """Masks of one image that get each name, int64 (K, K): rows are true classes, columns names.

    A mask is named as most of its pixels are; of equally many the class itself counts last, then the first class.

    Args:
        matrix: confusion matrix (K, K) of the image alone, rows are the ground truth.
    """
    present = np.flatnonzero(matrix.sum(axis=1))
    pixels = matrix[present]
    # A tie is no recognition: twice the pixels, less one for the class itself.
    votes = 2 * pixels
    votes[np.arange(len(present)), present] -= 1
    names = np.zeros_like(matrix)
    names[present, votes.argmax(axis=1)] = 1
    return names


def naming_accuracy(names: np.ndarray) -> np.ndarray:
    """Fraction of the masks of each class that get its name, (K,); NaN for a class without masks.

    Args:
        names: (K, K), the sum of `mask_names` of all images.
    """
    masks = names.sum(axis=1)
    return np.divide(names.diagonal(), masks, out=np.full(len(names), np.nan), where=masks > 0)
