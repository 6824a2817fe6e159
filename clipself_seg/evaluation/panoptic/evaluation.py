"""Panoptic, instance and semantic segmentation of a model, for several fusions in one pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm

from clipself_seg.data.datasets.panoptic import IGNORE_LABEL
from clipself_seg.data.loader import evaluation_batches
from clipself_seg.data.mappers.panoptic import PanopticTestMapper
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.records import Record
from clipself_seg.evaluation.base import Evaluation
from clipself_seg.evaluation.instances.ap import InstanceAPEvaluator
from clipself_seg.evaluation.panoptic.evaluator import PanopticQualityEvaluator
from clipself_seg.evaluation.panoptic.fusion_report import (
    TITLES,
    fusion_table,
    plot_sweep,
    rows_table,
    sweep_table,
)
from clipself_seg.evaluation.panoptic.fusions import (
    Row,
    RowsEvaluator,
    Sweep,
    check_exponents,
    named_rows,
    sweep_results,
    sweep_rows,
)
from clipself_seg.evaluation.panoptic.ground_truth import (
    PanopticTruth,
    read_panoptic_truth,
    trained_words,
)
from clipself_seg.evaluation.restored import restored
from clipself_seg.evaluation.sem_seg.evaluator import SemSegAccuracyEvaluator
from clipself_seg.heads.panoptic.mask_generator.outputs import check_outputs

# Data set -> row -> name of a number -> the number; and "sweep" beside the rows.
FusionResults = dict[str, dict[str, Any]]
logger = logging.getLogger(__name__)


class PanopticEvaluation(Evaluation):
    """Evaluates a model that fuses scores, all processes together, one data set after the other."""

    @configurable
    def __init__(
        self,
        *,
        datasets: Sequence[str],
        mapper: Callable[[Record], Sample],
        rows: Sequence[str],
        tasks: Sequence[str],
        alpha: float,
        beta: float,
        sweep: Sequence[float] = (),
        rule: str,
        train_vocabulary: str,
        workers: int,
        output_dir: Path,
    ) -> None:
        """
        Args:
            datasets: for panoptic segmentation, see `data.datasets.panoptic`.
            mapper: record -> sample, see `PanopticTestMapper`.
            rows: of `panoptic_rows.ROWS`.
            tasks: of `panoptic_rows.TASKS`; one for which a data set has no files is left out.
            alpha: CLIP's exponent for seen classes in the row "fused", in [0, 1].
            beta: likewise, for the others.
            sweep: values of alpha and beta, whose grid is evaluated too.
            rule: of the mean IoU, see `MiouRule`.
            train_vocabulary: name of the class list whose words count as seen; "" splits nothing,
                and the model takes all classes for seen.
            workers: of each loader.
            output_dir: for tables by class, in a folder a row, and pictures of the sweep.

        Raises:
            InputError: unknown rows or tasks, or exponents out of [0, 1].
        """
        check_exponents(sweep, "TEST.PANOPTIC.SWEEP")
        super().__init__(datasets)
        self.mapper = mapper
        self.rows = named_rows(rows, alpha, beta, tasks)
        self.tasks = tuple(tasks)
        self.sweep = tuple(dict.fromkeys(float(value) for value in sweep))
        self.rule, self.train_vocabulary = rule, train_vocabulary
        self.workers, self.output_dir = workers, output_dir
        self._known: dict[str, PanopticTruth] = {}
        self._facts: dict[str, Any] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads ``DATASETS``, ``TEST.PANOPTIC``, ``.MIOU_RULE`` and ``.TRAIN_VOCABULARY``,
        ``MODEL.FUSION``, ``INPUT``, ``DATALOADER`` and ``OUTPUT_DIR``."""
        return {
            "datasets": cfg.DATASETS.TEST,
            "mapper": PanopticTestMapper(cfg),
            "rows": cfg.TEST.PANOPTIC.ROWS,
            "tasks": cfg.TEST.PANOPTIC.TASKS,
            "alpha": cfg.MODEL.FUSION.ALPHA,
            "beta": cfg.MODEL.FUSION.BETA,
            "sweep": cfg.TEST.PANOPTIC.SWEEP,
            "rule": cfg.TEST.MIOU_RULE,
            "train_vocabulary": trained_words(cfg),
            "workers": cfg.DATALOADER.NUM_WORKERS,
            "output_dir": Path(cfg.OUTPUT_DIR),
        }

    def __call__(self, model: Any) -> FusionResults:
        """Evaluate on every data set; the same numbers in every process.

        Args:
            model: an nn.Module with `set_vocabulary(words, seen)`, which is given the words of each
                data set, and the attributes `rows` and `tasks`, see `OpenPanoptic`. These, its
                words and its mode are restored, so that training goes on with its own words.

        Returns:
            Of each data set and row means in percent (those of `panoptic_results`, "AP..." of
            `instance_results`, those of `sem_seg_results`), "alpha", "beta" and "images"; with a
            sweep also "sweep", see `fusion_report`.
        """
        with restored(model, "names", "things", "seen", "rows", "tasks"):
            results = self._each_dataset(model)
        if results and comm.is_main_process():
            self._report(results)
        return results

    def check(self, model: Any) -> None:
        """Refuse early what would fail late: missing files, words that are no panoptic ones."""
        if branch := getattr(model, "branch", None):
            self._facts["CLIP branch"] = branch.settings()
        made_by, areas = {}, {}
        for name in self.datasets:
            truth = self._truth(name)
            self._evaluator(name, truth)
            if truth.areas:
                areas[name] = truth.areas
            if folder := getattr(model, "outputs", ""):
                ids = [record["image_id"] for record in truth.records]
                made_by[name] = check_outputs(folder, name, ids)
        if made_by:
            self._facts["generator on disk"] = made_by
        if areas:
            self._facts["areas"] = areas

    def facts(self) -> dict[str, Any]:
        """What decides the numbers beside weights and configuration, as `check` found it."""
        return self._facts

    def _dataset(self, name: str, model: Any) -> dict[str, Any]:
        truth = self._truth(name)
        model.set_vocabulary(truth.vocabulary, seen=truth.seen)
        rows = self._rows(truth)
        model.rows = {row: (plan.alpha, plan.beta) for row, plan in rows.items()}
        model.tasks = {row: plan.tasks for row, plan in rows.items()}
        batches = evaluation_batches(truth.records, self.mapper, self.workers)
        found = inference_on_dataset(model, batches, self._evaluator(name, truth))
        results: dict[str, Any] = {
            row: found[row] | {"alpha": rows[row].alpha, "beta": rows[row].beta}
            for row in self.rows
        }
        if self.sweep:
            results["sweep"] = sweep_results(self.sweep, truth.seen, found)
        return results

    def _rows(self, truth: PanopticTruth) -> dict[str, Row]:
        named = {name: row._replace(tasks=truth.tasks) for name, row in self.rows.items()}
        return named | sweep_rows(self.sweep, truth.seen)

    def _evaluator(self, name: str, truth: PanopticTruth) -> RowsEvaluator:
        """Of all rows of a data set."""
        return RowsEvaluator(
            rows={
                row: {task: self._of_task(name, truth, task, row) for task in truth.tasks}
                for row in self.rows
            },
            quiet={
                row: self._of_segments(name, truth, None)
                for row in sweep_rows(self.sweep, truth.seen)
            },
        )

    def _of_task(self, name: str, truth: PanopticTruth, task: str, row: str) -> DatasetEvaluator:
        folder = self.output_dir / row
        if task == "panoptic":
            return self._of_segments(name, truth, folder)
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
            truth=truth.instances,
            seen=truth.seen,
            output_dir=folder,
        )

    def _of_segments(
        self, name: str, truth: PanopticTruth, folder: Path | None
    ) -> PanopticQualityEvaluator:
        return PanopticQualityEvaluator(
            dataset_name=name,
            vocabulary=truth.vocabulary,
            image_ids=truth.image_ids,
            seen=truth.seen,
            panoptic_json=truth.files.path(truth.files.panoptic_json),
            output_dir=folder,
        )

    def _truth(self, name: str) -> PanopticTruth:
        """Words and records of a data set, read once."""
        if name not in self._known:
            self._known[name] = read_panoptic_truth(name, self.tasks, self.train_vocabulary)
        return self._known[name]

    def _report(self, results: FusionResults) -> None:
        model = self.output_dir.name or "model"
        logger.info(
            "All data sets in percent:\n%s\n\n%s",
            rows_table(results),
            fusion_table({model: results}),
        )
        for name, found in results.items():
            if "sweep" in found:
                self._report_sweep(name, found["sweep"])

    def _report_sweep(self, name: str, sweep: Sweep) -> None:
        images = len(self._truth(name).records)
        title = f"{TITLES.get(name, name)}, {images} images"
        path = self.output_dir / f"sweep_{name}.png"
        plot_sweep(path, sweep, title)
        logger.info("PQ by alpha and beta (%s):\n%s\n%s", title, sweep_table(sweep), path)
