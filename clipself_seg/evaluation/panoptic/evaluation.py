"""Panoptic, instance and semantic segmentation of a model, for several fusions in one pass."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.evaluation import DatasetEvaluator

from clipself_seg.data.datasets.panoptic import IGNORE_LABEL
from clipself_seg.data.loader import evaluation_batches
from clipself_seg.data.mappers.panoptic import PanopticTestMapper
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.records import Record
from clipself_seg.evaluation.base import Evaluation, Pass, Results, own_classes_kept
from clipself_seg.evaluation.instances.ap import InstanceAPEvaluator
from clipself_seg.evaluation.panoptic.evaluator import PanopticQualityEvaluator
from clipself_seg.evaluation.panoptic.fusion_report import (
    TITLES,
    paper_table,
    plot_sweep,
    run_table,
    sweep_table,
)
from clipself_seg.evaluation.panoptic.fusions import (
    FusionsEvaluator,
    Sweep,
    check_exponents,
    check_names,
    named_fusions,
    sweep_fusions,
    sweep_results,
)
from clipself_seg.evaluation.panoptic.ground_truth import (
    PanopticGroundTruth,
    read_panoptic_ground_truth,
    train_vocabulary_name,
)
from clipself_seg.evaluation.sem_seg.evaluator import SemSegAccuracyEvaluator
from clipself_seg.models.protocol import PanopticModel

logger = logging.getLogger(__name__)


class PanopticEvaluation(Evaluation[PanopticModel]):
    """Evaluates a model that fuses scores, all processes together, one data set after the other."""

    @configurable
    def __init__(
        self,
        *,
        datasets: Sequence[str],
        mapper: Callable[[Record], Sample],
        fusions: Sequence[str],
        tasks: Sequence[str],
        sweep: Sequence[float] = (),
        rule: str,
        train_vocabulary: str,
        workers: int,
        output_dir: Path,
    ) -> None:
        """
        Args:
            datasets: names of panoptic data sets, see `data.datasets.panoptic`.
            mapper: maps a record to a sample, see `PanopticTestMapper`.
            fusions: names of fusions, out of `fusions.FUSIONS`; "fused" has the exponents of the model.
            tasks: what is measured, out of `TASKS`; a task for which a data set has no files is left
                out.
            sweep: values of alpha and beta, whose grid is evaluated too.
            rule: classes that the mean IoU is taken over, see `MiouRule`.
            train_vocabulary: name of the class list that was trained on, whose classes count as
                seen; "" splits nothing, and the model takes all classes for seen.
            workers: number of worker processes of each loader.
            output_dir: folder for tables by class, in a folder for each fusion, and plots of the
                sweep.

        Raises:
            InputError: unknown fusions or tasks, or exponents of the sweep out of [0, 1].
        """
        check_names(fusions, tasks)
        check_exponents(sweep, "TEST.PANOPTIC.SWEEP")
        super().__init__(datasets)
        self.mapper = mapper
        self.fusions = tuple(fusions)
        self.tasks = tuple(tasks)
        self.sweep = tuple(dict.fromkeys(float(value) for value in sweep))
        self.rule = rule
        self.train_vocabulary = train_vocabulary
        self.workers = workers
        self.output_dir = output_dir
        self._known: dict[str, PanopticGroundTruth] = {}
        self._exponents: dict[str, tuple[float, float]] = {}
        self._metadata: dict[str, Any] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads ``DATASETS``, ``TEST.{PANOPTIC, MIOU_RULE, TRAIN_VOCABULARY}``,
        ``INPUT``, ``DATALOADER`` and ``OUTPUT_DIR``."""
        return {
            "datasets": cfg.DATASETS.TEST,
            "mapper": PanopticTestMapper(cfg),
            "fusions": cfg.TEST.PANOPTIC.ROWS,
            "tasks": cfg.TEST.PANOPTIC.TASKS,
            "sweep": cfg.TEST.PANOPTIC.SWEEP,
            "rule": cfg.TEST.MIOU_RULE,
            "train_vocabulary": train_vocabulary_name(cfg),
            "workers": cfg.DATALOADER.NUM_WORKERS,
            "output_dir": Path(cfg.OUTPUT_DIR),
        }

    def check(self, model: PanopticModel) -> None:
        """Refuse early what would fail late: missing files, a vocabulary without things or stuff."""
        records = {}
        areas = {}
        for name in self.datasets:
            truth = self._truth(name)
            self._evaluator(name, truth)
            records[name] = truth.records
            if truth.areas:
                areas[name] = truth.areas
        self._metadata["names of a class"] = "all, the best score of each"
        self._metadata |= model.evaluation_metadata(records)
        if areas:
            self._metadata["areas"] = areas

    def metadata(self) -> dict[str, Any]:
        """Settings that decide the numbers beside weights and configuration, known after `check`."""
        return self._metadata

    def _classes_kept(self, model: PanopticModel) -> contextlib.AbstractContextManager[None]:
        return own_classes_kept(model)

    def _passes(self, name: str, model: PanopticModel) -> Iterator[Pass]:
        truth = self._truth(name)
        model.set_vocabulary(truth.vocabulary, seen=truth.seen)
        batches = evaluation_batches(truth.records, self.mapper, self.workers)
        named = named_fusions(self.fusions, *model.exponents, truth.tasks)
        self._exponents = {fusion: own[:2] for fusion, own in named.items()}
        asked = named | sweep_fusions(self.sweep, truth.seen)
        yield Pass(batches, self._evaluator(name, truth), {"fusions": asked})

    def _numbers(self, name: str, outputs: list[dict[str, Any]]) -> dict[str, Any]:
        """For each fusion means in percent (those of `panoptic_results`, "AP..." of `instance_results`, those
        of `sem_seg_results`), "alpha", "beta" and "images"; with a sweep also "sweep", see `fusion_report`.
        """
        (numbers,) = outputs
        results: dict[str, Any] = {
            fusion: numbers[fusion] | {"alpha": alpha, "beta": beta}
            for fusion, (alpha, beta) in self._exponents.items()
        }
        if self.sweep:
            results["sweep"] = sweep_results(self.sweep, self._truth(name).seen, numbers)
        return results

    def _evaluator(self, name: str, truth: PanopticGroundTruth) -> FusionsEvaluator:
        """Evaluators of every fusion of a data set."""
        return FusionsEvaluator(
            fusions={
                fusion: {
                    task: self._task_evaluator(name, truth, task, fusion) for task in truth.tasks
                }
                for fusion in self.fusions
            },
            quiet={
                fusion: self._panoptic_evaluator(name, truth, None)
                for fusion in sweep_fusions(self.sweep, truth.seen)
            },
        )

    def _task_evaluator(
        self, name: str, truth: PanopticGroundTruth, task: str, fusion: str
    ) -> DatasetEvaluator:
        folder = self.output_dir / fusion
        if task == "panoptic":
            return self._panoptic_evaluator(name, truth, folder)
        if task == "semantic":
            return SemSegAccuracyEvaluator(
                dataset_name=name,
                class_names=truth.vocabulary.names,
                ignore_label=IGNORE_LABEL,
                seen=truth.seen,
                rule=self.rule,
                output_dir=folder,
            )
        assert truth.instances is not None
        return InstanceAPEvaluator(
            dataset_name=name,
            vocabulary=truth.vocabulary,
            ground_truth=truth.instances,
            seen=truth.seen,
            output_dir=folder,
        )

    def _panoptic_evaluator(
        self, name: str, truth: PanopticGroundTruth, folder: Path | None
    ) -> PanopticQualityEvaluator:
        return PanopticQualityEvaluator(
            dataset_name=name,
            vocabulary=truth.vocabulary,
            image_ids=truth.image_ids,
            seen=truth.seen,
            panoptic_json=truth.files.path(truth.files.panoptic_json),
            output_dir=folder,
        )

    def _truth(self, name: str) -> PanopticGroundTruth:
        """Vocabulary, records and ground truth of a data set, read once."""
        if name not in self._known:
            self._known[name] = read_panoptic_ground_truth(name, self.tasks, self.train_vocabulary)
        return self._known[name]

    def tables(self, results: Results, style: str = "simple") -> dict[str, str]:
        """All means of each data set and fusion, the paper's Table 6, and the sweep of each data set."""
        model = self.output_dir.name or "model"
        tables = {
            "All data sets in percent": run_table(results, style),
            "The paper's Table 6": paper_table({model: results}, style=style),
        }
        return tables | {
            f"PQ by alpha and beta ({self._title(name)})": sweep_table(sweep, style=style)
            for name, sweep in _sweeps(results).items()
        }

    def _report(self, results: Results) -> None:
        super()._report(results)
        for name, sweep in _sweeps(results).items():
            path = self.output_dir / f"sweep_{name}.png"
            plot_sweep(path, sweep, self._title(name))
            logger.info("PQ by alpha and beta is drawn in %s", path)

    def _title(self, name: str) -> str:
        return f"{TITLES.get(name, name)}, {len(self._truth(name).records)} images"


def _sweeps(results: Results) -> dict[str, Sweep]:
    """The sweep of each data set that has one."""
    return {name: numbers["sweep"] for name, numbers in results.items() if "sweep" in numbers}
