"""What all evaluations share: the way over the data sets, and what is told on it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

Results = dict[str, Any]  # data set -> numbers, in one or more levels


class Evaluation(abc.ABC):
    """Measures a model on DATASETS.TEST, all processes together, one data set after the other.

    Attributes:
        datasets: their names.
        finished: called after each data set with the numbers so far: what is measured is not lost
            if a later one fails.
    """

    def __init__(self, datasets: Sequence[str]) -> None:
        self.datasets = tuple(datasets)
        self.finished: Callable[[Results], None] = lambda results: None

    @abc.abstractmethod
    def check(self, model: Any) -> None:
        """Refuse early what would fail late."""

    @abc.abstractmethod
    def __call__(self, model: Any) -> Results:
        """The same numbers in every process."""

    def facts(self) -> dict[str, Any]:
        """What decides the numbers beside weights and configuration, once `check` was called."""
        return {}

    @abc.abstractmethod
    def _dataset(self, name: str, model: Any) -> dict[Any, Any]:
        """Numbers of one data set."""

    def _each_dataset(self, model: Any) -> Results:
        results: Results = {}
        for name in self.datasets:
            results[name] = self._dataset(name, model)
            self.finished(results)
        return results
