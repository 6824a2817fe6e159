"""Open mIoU: IoU from a confusion matrix in which a pixel of another class counts by the similarity of the classes.

The idea is that of Open mIoU in arXiv 2311.03352, whose notes say that a similarity of classes "turns errors into
partial true positives". The definition here is this project's own; its values are not the paper's.

Legend: K classes, M the confusion matrix, S the similarity.
"""

from __future__ import annotations

import numpy as np

from clipself_seg.evaluation.sem_seg.numbers import MiouRule


def open_iou(matrix: np.ndarray, similarity: np.ndarray, rule: MiouRule = "present") -> np.ndarray:
    """Open IoU of each class, float64 (K,) in [0, 1]; NaN for classes that do not count by the rule.

    A pixel of class i that is predicted as j is right by S_ij: it adds S_ij to the hits of class i, 1 - S_ij to the
    misses of class i, and 1 - S_ij to the false pixels of class j:

        hits_i = sum_j S_ij M_ij,  misses_i = sum_j (1 - S_ij) M_ij,  false_j = sum_i (1 - S_ij) M_ij
        open IoU_i = hits_i / (hits_i + misses_i + false_i)

    With S the identity it is the IoU, with S = 1 everywhere it is 1, and it grows with every S_ij.

    Args:
        matrix: int64 (K, K), rows are the ground truth, see `numbers.confusion_matrix`.
        similarity: (K, K) in [0, 1], 1 on the diagonal.
        rule: which classes count, see `MiouRule`.

    Raises:
        ValueError: the similarity is of other classes, or is none.
    """
    check_similarity(similarity, len(matrix))
    truth = matrix.sum(axis=1)
    counted = truth > 0 if rule == "present" else truth + matrix.sum(axis=0) > 0
    hits = (similarity * matrix).sum(axis=1)
    false = ((1 - similarity) * matrix).sum(axis=0)
    # Hits and misses together are the pixels of the class.
    pixels = truth + false
    # A class whose pixels are all false, and all excused, has no number.
    counted &= pixels > 0
    return np.divide(hits, pixels, out=np.full(len(matrix), np.nan), where=counted)


def check_similarity(similarity: np.ndarray, num_classes: int) -> None:
    """Refuse what is no similarity of the classes.

    Raises:
        ValueError: another shape, a value outside of [0, 1], or a class that is not like itself.
    """
    if similarity.shape != (num_classes, num_classes):
        raise ValueError(f"similarity of shape {similarity.shape} for {num_classes} classes")
    if not ((similarity >= 0) & (similarity <= 1)).all() or not (similarity.diagonal() == 1).all():
        raise ValueError("similarities have to be in [0, 1], and 1 between a class and itself")
