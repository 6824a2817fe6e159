"""Which classes of a vocabulary the training vocabulary has as well, by their names."""

from __future__ import annotations

import re

import numpy as np

from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass


def seen_by_name(test: Vocabulary, train: Vocabulary) -> np.ndarray:
    """Bool (K,): which of the K classes of `test` have a synonym that `train` has too.

    Names are compared in lower case, with hyphens and underscores as spaces. Nothing is understood:
    "wall" is not seen because of "wall-brick", nor "sofa" because of "couch".
    """
    known = {word for entry in train.classes for word in _words(entry)}
    return np.array([not known.isdisjoint(_words(entry)) for entry in test.classes], dtype=bool)


def seen_by_synonym(test: Vocabulary, train: Vocabulary) -> np.ndarray:
    """Bool (K,): which of the K classes of `test` have a synonym that is a string of `train`.

    The published rule of panoptic fusion: strings are compared as the files spell them, so case,
    plurals and blanks matter. Of OpenSeg's ADE20K-150 list COCO's 133 classes have seen 64.
    """
    known = {name for entry in train.classes for name in entry.names}
    return np.array([not known.isdisjoint(entry.names) for entry in test.classes], dtype=bool)


def _words(entry: VocabularyClass) -> set[str]:
    return {" ".join(re.sub("[-_]", " ", name).lower().split()) for name in entry.names}
