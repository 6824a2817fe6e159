"""The base of all evaluations: the loop over data sets, and calls of a model with arguments."""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from detectron2.evaluation import DatasetEvaluator, inference_context, inference_on_dataset

from clipself_seg.data.loader import Batches
from clipself_seg.models.protocol import Model, PanopticModel, SemSegModel

Results = dict[str, Any]  # name of a data set -> its numbers, nested as the task needs
AnyModel = TypeVar("AnyModel", bound=Model)


class Evaluation(abc.ABC, Generic[AnyModel]):
    """Measures a model on DATASETS.TEST, all processes together, one data set after the other.

    Attributes:
        datasets: names of the data sets.
        finished: function that is called after each data set with the numbers so far, so that they
            are not lost if a later data set fails.
    """

    def __init__(self, datasets: Sequence[str]) -> None:
        self.datasets = tuple(datasets)
        self.finished: Callable[[Results], None] = lambda results: None

    @abc.abstractmethod
    def check(self, model: AnyModel) -> None:
        """Refuse early what would fail late.

        Raises:
            InputError: a data set or a file of it is missing or broken, or does not fit the model.
        """

    @abc.abstractmethod
    def __call__(self, model: AnyModel) -> Results:
        """Evaluates on every data set and returns the same numbers in every process."""

    def metadata(self) -> dict[str, Any]:
        """Settings that decide the numbers beside weights and configuration, known after `check`."""
        return {}

    @abc.abstractmethod
    def _dataset(self, name: str, model: AnyModel) -> dict[Any, Any]:
        """Evaluates on one data set and returns its numbers."""

    def _each_dataset(self, model: AnyModel) -> Results:
        results: Results = {}
        for name in self.datasets:
            results[name] = self._dataset(name, model)
            self.finished(results)
        return results


def run_model(
    model: Any, batches: Batches, evaluator: DatasetEvaluator, **asked: Any
) -> dict[str, Any]:
    """Detectron2's `inference_on_dataset` with keyword arguments for each call of the model.

    Args:
        model: an nn.Module, which is in evaluation mode meanwhile.
        batches: lists of samples.
        evaluator: compares the samples with the model's outputs.
        **asked: keyword arguments of the model's ``forward``, such as the outputs that it makes.

    Returns:
        The numbers of the evaluator.
    """
    with inference_context(model):
        return inference_on_dataset(functools.partial(model, **asked), batches, evaluator)


@contextlib.contextmanager
def own_classes_kept(model: SemSegModel | PanopticModel) -> Iterator[None]:
    """Restores the classes of a model afterwards, whatever vocabularies it is given meanwhile.

    In the middle of a training they are those of the training vocabulary.
    """
    before = model.classes
    try:
        yield
    finally:
        model.classes = before
