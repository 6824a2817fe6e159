"""Semantic segmentation of a model on data sets, each with its own words, and the paper's table."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm

from clipself_seg.data.datasets.catalog import vocabulary_name
from clipself_seg.data.datasets.sem_seg import sem_seg_dataset, sem_seg_records
from clipself_seg.data.loader import evaluation_batches
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.mappers.sem_seg import SemSegTestMapper
from clipself_seg.data.overlap import seen_by_name
from clipself_seg.data.records import Record
from clipself_seg.data.vocabulary import Vocabulary, class_list, load_vocabulary, read_class_json
from clipself_seg.errors import InputError
from clipself_seg.evaluation.base import Evaluation, own_classes_kept, run_model
from clipself_seg.evaluation.sem_seg.evaluator import SemSegAccuracyEvaluator
from clipself_seg.evaluation.sem_seg.numbers import check_rule
from clipself_seg.evaluation.sem_seg.report import paper_table, run_table
from clipself_seg.models.protocol import SemSegModel

# Data set -> name of a number -> the number.
SemSegResults = dict[str, dict[str, float]]
logger = logging.getLogger(__name__)


class SemSegEvaluation(Evaluation[SemSegModel]):
    """Evaluates a model that labels pixels, all processes together, one data set after the other."""

    @configurable
    def __init__(
        self,
        *,
        datasets: Sequence[str],
        mapper: Callable[[Record], Sample],
        rule: str,
        train_vocabulary: str,
        workers: int,
        output_dir: Path,
        class_json: str = "",
        pooling: Sequence[int] = (),
    ) -> None:
        """
        Args:
            datasets: for semantic segmentation, see `data.datasets.sem_seg`.
            mapper: record -> sample, see `SemSegTestMapper`.
            rule: of the mean IoU, see `MiouRule`.
            train_vocabulary: name of the class list whose words count as seen, or its file; "" splits
                nothing.
            workers: of each loader.
            output_dir: for tables by class; its name is that of the model in the paper's table.
            class_json: words that the model is given instead of the data set's own, one for each
                of its classes, as CAT-Seg's files have them; "" for none.
            pooling: of the classes before their attention, where windows slide.
        """
        super().__init__(datasets)
        self.mapper, self.rule = mapper, rule
        self.train_vocabulary, self.workers = train_vocabulary, workers
        self.output_dir, self.class_json, self.pooling = output_dir, class_json, tuple(pooling)
        self._known: dict[str, _Task] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads ``DATASETS``, ``TEST``, ``INPUT``, ``DATALOADER``, ``OUTPUT_DIR``, and of
        ``MODEL.SEM_SEG_HEAD`` ``TEST_CLASS_JSON`` and ``POOLING_SIZES``."""
        words, class_json = cfg.TEST.TRAIN_VOCABULARY, cfg.MODEL.SEM_SEG_HEAD.TRAIN_CLASS_JSON
        if not words and class_json:
            words = class_list(class_json)
        elif not words and cfg.DATASETS.TRAIN:
            words = vocabulary_name(cfg.DATASETS.TRAIN[0])
        return {
            "datasets": cfg.DATASETS.TEST,
            "mapper": SemSegTestMapper(cfg),
            "rule": cfg.TEST.MIOU_RULE,
            "train_vocabulary": words,
            "workers": cfg.DATALOADER.NUM_WORKERS,
            "output_dir": Path(cfg.OUTPUT_DIR),
            "class_json": cfg.MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON,
            "pooling": cfg.MODEL.SEM_SEG_HEAD.POOLING_SIZES if cfg.TEST.SLIDING_WINDOW else (),
        }

    def __call__(self, model: SemSegModel) -> SemSegResults:
        """Evaluate on every data set; the same numbers in every process.

        Args:
            model: is given the classes of each data set; afterwards it has its own classes and
                mode again, so that training goes on.

        Returns:
            Means, counts and the numbers of each class that counts, see `sem_seg_results`.
        """
        if set(self.pooling) - {1}:
            logger.info(
                "MODEL.SEM_SEG_HEAD.POOLING_SIZES is %s; the official numbers pool by 1 in evaluation",
                list(self.pooling),
            )
        with own_classes_kept(model):
            results = self._each_dataset(model)
        if results and comm.is_main_process():
            rows = {self.output_dir.name or "model": results}
            logger.info(
                'All data sets in percent, rule "%s":\n%s\n\n%s',
                self.rule,
                run_table(results),
                paper_table(rows),
            )
        return results

    def metadata(self) -> dict[str, str]:
        """What decides the numbers beside weights and data, for the files of a run."""
        return {"evaluator rule": self.rule, "train vocabulary": self.train_vocabulary}

    def check(self, model: SemSegModel) -> None:
        """Refuse early what would fail late: an unknown rule, missing data sets or words."""
        check_rule(self.rule)
        for name in self.datasets:
            self._task(name)

    def _dataset(self, name: str, model: SemSegModel) -> dict[str, float]:
        task = self._task(name)
        model.set_vocabulary(task.words)
        evaluator = SemSegAccuracyEvaluator(
            dataset_name=name,
            class_names=task.class_names,
            ignore_label=task.ignore_label,
            background=task.background,
            seen=task.seen,
            rule=self.rule,
            output_dir=self.output_dir,
        )
        batches = evaluation_batches(task.records, self.mapper, self.workers)
        # The best class of each pixel instead of all scores.
        numbers = run_model(model, batches, evaluator, output="labels")["sem_seg"]
        # JSON has no NaN: a class that does not count has no number.
        return {key: value for key, value in numbers.items() if not math.isnan(value)}

    def _task(self, name: str) -> _Task:
        """Words and records of a data set, read once."""
        if name not in self._known:
            self._known[name] = _read_task(name, self.train_vocabulary, self.class_json)
        return self._known[name]


class _Task(NamedTuple):
    """A data set: what the model is told, what it is shown, and how it is counted."""

    words: Vocabulary | list[str]
    records: list[Record]
    class_names: tuple[str, ...]
    ignore_label: int
    background: int | None
    seen: np.ndarray | None


def _read_task(name: str, train_vocabulary: str, class_json: str) -> _Task:
    files = sem_seg_dataset(name)
    vocabulary = load_vocabulary(files.vocabulary)
    # Without a background this keeps all; the background itself is neither seen nor unseen.
    foreground = slice(files.background)
    names = vocabulary.names[foreground]
    seen = None
    if train_vocabulary:
        seen = seen_by_name(vocabulary, load_vocabulary(train_vocabulary))[foreground]
    words: Vocabulary | list[str] = vocabulary
    if class_json:
        words = words_of_set("TEST_CLASS_JSON", class_json, name, len(vocabulary))
    return _Task(
        words=words,
        records=sem_seg_records(name),
        class_names=names if files.background is None else (*names, "background"),
        ignore_label=files.ignore_label,
        background=files.background,
        seen=seen,
    )


def words_of_set(key: str, class_json: str, name: str, count: int) -> list[str]:
    """Words for the classes of a data set from a file in CAT-Seg's form.

    Args:
        key: of ``MODEL.SEM_SEG_HEAD``, that names the file.
        class_json: the file, see `read_class_json`.
        name: of the data set.
        count: of its classes.

    Raises:
        InputError: no such file, or one of another number of classes.
    """
    words = read_class_json(class_json)
    if len(words) != count:
        raise InputError(
            f'MODEL.SEM_SEG_HEAD.{key} {class_json} has {len(words)} names, "{name}" has '
            f'{count} classes: leave the key "" to give each data set its own words'
        )
    return words
