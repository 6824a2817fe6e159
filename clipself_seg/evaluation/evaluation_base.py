"""The base of all evaluations: the loop over data sets, and the metrics that others registered."""

from __future__ import annotations

import abc
import contextlib
import copy
import logging
import math
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar, cast

import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_context, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from clipself_seg.config.relations import EVALUATION, require_valid
from clipself_seg.data.loader import Batches
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.errors import InputError
from clipself_seg.evaluation.measuring_protocol import MeasuringProtocol, protocol_lines
from clipself_seg.evaluation.report import format_table
from clipself_seg.models.model_protocols import Model, SemanticModel, reading_of
from clipself_seg.registry import Registry

logger = logging.getLogger(__name__)

# Name of a data set, of a fusion, size, ... -> numbers, nested as the task needs.
Results = dict[Any, Any]
AnyModel = TypeVar("AnyModel", bound=Model)
Data = TypeVar("Data")

# Numbers that modules of --import add, see `extend.register_metric`: name -> what computes it. Those of the published
# evaluations are no entries: each task computes many of them in one pass, in the order that results.json has.
METRICS = Registry[Callable[[Mapping[str, float], np.ndarray | None], float | None]]()


class Pass(NamedTuple):
    """One pass of a model over a data set.

    Attributes:
        batches: lists of samples.
        evaluator: is given samples and outputs.
        ask: samples -> outputs of the model.
    """

    batches: Batches
    evaluator: DatasetEvaluator
    ask: Callable[[Sequence[Sample]], object]


@dataclass(eq=False)
class Evaluation(abc.ABC, Generic[AnyModel, Data]):
    """Measures a model on DATASETS.TEST, all processes together, one data set after the other.

    Attributes:
        datasets: names of the data sets.
        workers: number of worker processes of each loader.
        output_dir: folder for files.
        synonyms: names of a class that count, in the words of the model that was checked.
        protocols: name of a data set that was begun -> the protocol of its numbers.
        silent: true if no table is logged, since somebody else says the numbers.
    """

    datasets: Sequence[str]
    workers: int
    output_dir: Path
    silent = False

    def __post_init__(self) -> None:
        self.synonyms = ""
        self.protocols: dict[str, MeasuringProtocol] = {}
        self._known: dict[str, Data] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Reads the keys of every evaluation: ``DATASETS.TEST``, ``DATALOADER`` and ``OUTPUT_DIR``.

        Raises:
            InputError: keys that only an evaluation reads do not go together.
        """
        require_valid(cfg, EVALUATION, all_keys=True)
        return {
            "datasets": cfg.DATASETS.TEST,
            "workers": cfg.DATALOADER.NUM_WORKERS,
            "output_dir": Path(cfg.OUTPUT_DIR),
        }

    def changed(self, **attributes: Any) -> Self:
        """This evaluation with other values of attributes, what was read of its data sets included."""
        other = copy.copy(self)
        vars(other).update(attributes, protocols={})
        return other

    def check(self, model: AnyModel) -> None:
        """Refuses early what would fail late.

        Raises:
            InputError: a data set or a file of it is missing or broken, or does not fit the model.
        """
        self.synonyms = reading_of(model).synonyms
        for name in self.datasets:
            self.data(name)

    def __call__(
        self, model: AnyModel, finished: Callable[[Results], None] | None = None
    ) -> Results:
        """Evaluates on every data set; the same numbers in every process.

        Args:
            model: an nn.Module. It is in evaluation mode meanwhile, and has its own
                classes and mode again afterwards, so that training goes on.
            finished: is called after each data set with the numbers so far, so that they are not lost if a later data
                set fails.
        """
        results: Results = {}
        wrong = dict[str, str]()
        with classes_kept(model):
            for name in self.datasets:
                self.protocols[name] = self._protocol(name, model)
                outputs, evaluators = [], []
                for batches, evaluator, ask in self._passes(name, model):
                    with inference_context(cast(nn.Module, model)):
                        outputs.append(inference_on_dataset(ask, batches, evaluator))
                    evaluators.append(evaluator)
                results[name] = self._numbers(name, outputs)
                # An evaluation without a pass, such as a reader of files, counts no pixels.
                confusion = self._confusion(evaluators[0]) if evaluators else None
                wrong |= add_metrics(results[name], confusion)
                self._report({name: results[name]})
                if finished is not None:
                    finished(results)
        if len(results) > 1:
            self._report(results)
        if wrong:
            raise InputError("all other numbers are complete, but " + "\n".join(wrong.values()))
        return results

    def metadata(self) -> dict[str, object]:
        """Settings that decide the numbers beside weights and configuration, known after `check`."""
        return {}

    def data(self, name: str) -> Data:
        """Vocabulary, records and ground truth of a data set, read once."""
        if name not in self._known:
            self._known[name] = self._read(name)
        return self._known[name]

    @abc.abstractmethod
    def _read(self, name: str) -> Data:
        """Reads a data set, for `data` to keep."""

    @abc.abstractmethod
    def _protocol(self, name: str, model: AnyModel) -> MeasuringProtocol:
        """The protocol of a data set's numbers, made of what the model and the evaluation use."""

    def notes(self, names: Iterable[str]) -> list[str]:
        """Lines that stand below every table: the protocols of some data sets, as far as those were begun."""
        begun = {name: self.protocols[name] for name in names if name in self.protocols}
        return protocol_lines({name: protocol.as_dict() for name, protocol in begun.items()})

    @abc.abstractmethod
    def _passes(self, name: str, model: AnyModel) -> Iterator[Pass]:
        """The passes over a data set; the model is given its classes before the first."""

    @abc.abstractmethod
    def _numbers(self, name: str, outputs: list[Results]) -> Results:
        """Numbers of a data set, from what the evaluator of each pass returned."""

    def _confusion(self, evaluator: DatasetEvaluator) -> np.ndarray | None:
        """Pixels of true by predicted classes that the evaluator of a data set has counted, for metrics; or None."""
        return None

    def tables(self, results: Results) -> dict[str, str]:
        """Title -> table of all data sets.

        Args:
            results: name of a data set -> its numbers; those that are not finished yet may be absent.
        """
        return {}

    def all_tables(self, results: Results) -> dict[str, str]:
        """The tables of `tables`, and one of the numbers of `METRICS`."""
        tables = self.tables(results)
        rows = [
            [place, *(f"{numbers[name]:.2f}" if name in numbers else "-" for name in METRICS)]
            for place, numbers in innermost(results)
            if METRICS.keys() & numbers.keys()
        ]
        return tables | ({"Registered metrics": format_table(["", *METRICS], rows)} if rows else {})

    def _report(self, results: Results) -> None:
        """Logs tables of some data sets, in the main process."""
        if self.silent or not comm.is_main_process():
            return
        for title, table in self.all_tables(results).items():
            notes = [
                textwrap.fill(note, 100, subsequent_indent="  ") for note in self.notes(results)
            ]
            logger.info("%s:\n%s\n%s", title, table, "\n".join(notes))


@contextlib.contextmanager
def classes_kept(model: Model) -> Iterator[None]:
    """Restores the classes of a model that keeps them, whatever vocabularies it is given meanwhile.

    In the middle of a training they are those of the training vocabulary.
    """
    before = getattr(model, "classes", None)
    try:
        yield
    finally:
        if before is not None:
            cast(SemanticModel, model).classes = before


def innermost(results: Results, place: str = "") -> Iterator[tuple[str, Results]]:
    """The innermost numbers of nested ones and their place, such as "mini_val_panoptic/fused"."""
    nested = {key: value for key, value in results.items() if isinstance(value, dict)}
    if not nested:
        yield place, results
    for key, value in nested.items():
        yield from innermost(value, f"{place}/{key}".lstrip("/"))


def add_metrics(results: Results, confusion: np.ndarray | None) -> dict[str, str]:
    """Adds those of `METRICS` that are finite to the innermost numbers of a data set.

    Returns the name of each that cannot be had -> a sentence: it fails, or there is a number of this name already.

    Args:
        results: numbers of a data set.
        confusion: pixels of true and of predicted classes (K, K), see `mean_iou.confusion_matrix`; None where
            the evaluation counts none.
    """
    wrong = dict[str, str]()
    for _, numbers in innermost(results):
        given = dict(numbers)
        for name, metric in METRICS.items():
            try:
                if name in given:
                    raise InputError("the evaluation has such a number: give yours another name")
                value = metric(given, confusion)
                if value is not None and math.isfinite(value):
                    numbers[name] = float(value)
            except Exception as error:
                file, line, *_ = traceback.extract_tb(error.__traceback__)[:2][-1]
                wrong[name] = f'the metric "{name}" fails at {file}, line {line}: {error!r}'
    return wrong
