"""The synonym test: evaluates the same weights under other names of the same classes, and reports how numbers change.

After the test that SynCLIP (arXiv 2607.11008) is measured by, in which every name is replaced by a synonym. Here the
synonyms are those that the vocabularies have.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

from clipself_seg.data.vocabulary import Vocabulary, class_names

logger = logging.getLogger(__name__)

# Statistic over the vocabularies of the test -> what makes it of their numbers.
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: sum(values) / len(values),
    "worst": min,
    "spread": lambda values: max(values) - min(values),
}


def synonym_vocabularies(
    words: Vocabulary | Sequence[str], most: int
) -> list[Vocabulary | list[str]]:
    """Vocabularies of the same classes, in each of which every class has one name.

    In vocabulary j it is name j of the class, counted from 0 and beginning again after its last one: the first
    vocabulary has the first names, and each name comes in one of the first n, where n is the largest number of names.

    Args:
        words: a vocabulary, or an entry for each class with its synonyms, see `class_names`.
        most: number of vocabularies that are not exceeded.

    Returns:
        At most n vocabularies; none where every class has one name, and nothing is to be tested.
    """
    names = class_names(words)
    count = max(map(len, names))
    if count < 2:
        return []
    return [
        _with_names(words, [own[j % len(own)] for own in names]) for j in range(min(most, count))
    ]


def renamed_vocabularies(
    words: Vocabulary | Sequence[str], most: int, dataset: str
) -> list[Vocabulary | list[str]]:
    """`synonym_vocabularies` for an evaluation; none, with a logged reason, where there are no synonyms."""
    renamed = synonym_vocabularies(words, most) if most else []
    if most and not renamed:
        logger.warning('every class of "%s" has one name: there is no synonym test', dataset)
    return renamed


def _with_names(words: Vocabulary | Sequence[str], names: Sequence[str]) -> Vocabulary | list[str]:
    if not isinstance(words, Vocabulary):
        return list(names)
    classes = tuple(
        dataclasses.replace(entry, names=(name,), catseg_name=None)
        for entry, name in zip(words.classes, names, strict=True)
    )
    return dataclasses.replace(words, classes=classes)


def synonym_results(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean, worst and spread (best minus worst) of each number over the vocabularies of the test.

    Args:
        rounds: the numbers of each vocabulary; one that some vocabulary lacks is left out.

    Returns:
        "synonyms-mean-NAME", "synonyms-worst-NAME" and "synonyms-spread-NAME" of each number NAME, and "synonyms", the
        number of vocabularies.
    """
    shared = [key for key in rounds[0] if all(key in numbers for numbers in rounds)]
    results = {
        f"synonyms-{statistic}-{key}": of([numbers[key] for numbers in rounds])
        for key in shared
        for statistic, of in STATISTICS.items()
    }
    return results | {"synonyms": float(len(rounds))}
