"""What all evaluations share: the loop over data sets, and how a model is asked."""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from detectron2.evaluation import DatasetEvaluator, inference_context, inference_on_dataset

from clipself_seg.data.loader import Batches
from clipself_seg.models.protocol import Model, PanopticModel, SemSegModel

Results = dict[str, Any]  # data set -> numbers, in one or more levels
AnyModel = TypeVar("AnyModel", bound=Model)


class Evaluation(abc.ABC, Generic[AnyModel]):
    """Measures a model on DATASETS.TEST, all processes together, one data set after the other.

    Attributes:
        datasets: names of the data sets.
        finished: called after each data set with the numbers so far: what is measured is not lost
            if a later one fails.
    """

    def __init__(self, datasets: Sequence[str]) -> None:
        self.datasets = tuple(datasets)
        self.finished: Callable[[Results], None] = lambda results: None

    @abc.abstractmethod
    def check(self, model: AnyModel) -> None:
        """Refuse early what would fail late.

        Raises:
            InputError: a data set, a file of it, or something that the model lacks.
        """

    @abc.abstractmethod
    def __call__(self, model: AnyModel) -> Results:
        """Evaluates on every data set and returns the same numbers in every process."""

    def metadata(self) -> dict[str, Any]:
        """What decides the numbers beside weights and configuration, once `check` was called."""
        return {}

    @abc.abstractmethod
    def _dataset(self, name: str, model: AnyModel) -> dict[Any, Any]:
        """Numbers of one data set."""

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
        model: an nn.Module; it is in evaluation mode meanwhile.
        batches: lists of samples.
        evaluator: is given samples and outputs.
        **asked: what the model's ``forward`` is asked for.
    """
    with inference_context(model):
        return inference_on_dataset(functools.partial(model, **asked), batches, evaluator)


@contextlib.contextmanager
def own_classes_kept(model: SemSegModel | PanopticModel) -> Iterator[None]:
    """Data sets give the model their classes; afterwards it has those again that it came with.

    (In the middle of a training they are those of the training vocabulary.)
    """
    before = model.classes
    try:
        yield
    finally:
        model.classes = before
