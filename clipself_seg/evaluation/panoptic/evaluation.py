"""Panoptic, instance and semantic segmentation of a model, for several fusions in one pass."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.evaluation import DatasetEvaluator

from clipself_seg.data.loader import Batches, evaluation_batches
from clipself_seg.data.mappers.panoptic import PanopticTestMapper
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.records import Record
from clipself_seg.errors import InputError
from clipself_seg.evaluation.base import Evaluation, Pass, Results, own_classes_kept
from clipself_seg.evaluation.extras import Extras
from clipself_seg.evaluation.instances.ap import InstanceAPEvaluator
from clipself_seg.evaluation.instances.cityscapes_ap import CityscapesAPEvaluator
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
    void_name,
)
from clipself_seg.evaluation.panoptic.gap import gap_results
from clipself_seg.evaluation.panoptic.ground_truth import (
    PanopticGroundTruth,
    read_panoptic_ground_truth,
    train_vocabulary_name,
)
from clipself_seg.evaluation.panoptic.semantic_only import (
    counts_all,
    is_semantic_only,
    label_map_classes,
    read_semantic_only,
)
from clipself_seg.evaluation.panoptic.true_masks import TrueMaskEvaluator, TrueMasks
from clipself_seg.evaluation.protocol import (
    MeasuringProtocol,
    seen_text,
    size_text,
    words_text,
)
from clipself_seg.evaluation.sem_seg.beside import Beside
from clipself_seg.evaluation.sem_seg.evaluator import SemSegAccuracyEvaluator
from clipself_seg.evaluation.synonym_test import renamed_vocabularies, synonym_results
from clipself_seg.heads.fusion import Fusion
from clipself_seg.models.panoptic.true_masks import MaskModel
from clipself_seg.models.protocol import PanopticModel, reading_of

logger = logging.getLogger(__name__)

MEASURED = ("similarity", "boundary", "naming", "synonyms", "oracle", "gap")
CITYSCAPES_INSTANCES = "instances by Cityscapes' rules"
# Beginnings of the numbers of other passes that are kept.
MEASURES = ("PQ", "SQ", "RQ", "AP", "mIoU", "fwIoU", "mACC", "pACC")


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
        void_sweep: Sequence[float] = (),
        rule: str,
        train_vocabulary: str,
        workers: int,
        output_dir: Path,
        extras: Extras | None = None,
        label_files: Sequence[str] = (),
    ) -> None:
        """
        Args:
            datasets: names of data sets, see `data.datasets.panoptic`, and of those with label maps alone, see
                `data.datasets.sem_seg`.
            mapper: maps a record to a sample, see `PanopticTestMapper`.
            fusions: names of fusions, out of `fusions.FUSIONS`; "fused" has the exponents of the model.
            tasks: what is measured, out of `TASKS`; a task for which a data set has no files is left
                out.
            sweep: values of alpha and beta, whose grid is evaluated too.
            void_sweep: weights by which CLIP lowers void, with each of which "fused" is evaluated too.
            rule: classes that the mean IoU is taken over, see `MiouRule`.
            train_vocabulary: name of the class list that was trained on, whose classes count as
                seen; "" splits nothing, and the model takes all classes for seen.
            workers: number of worker processes of each loader.
            output_dir: folder for tables by class, in a folder for each fusion, and plots of the
                sweep.
            extras: what is measured beside the published numbers, out of `MEASURED`; None for nothing.
            label_files: for each data set a file of other names for its classes, or ""; () for none at all.

        Raises:
            InputError: unknown fusions or tasks, values of a sweep out of [0, 1], or another number of label files
                than data sets.
        """
        check_names(fusions, tasks)
        check_exponents(sweep, "TEST.PANOPTIC.SWEEP")
        check_exponents(void_sweep, "TEST.PANOPTIC.VOID_SWEEP")
        super().__init__(datasets)
        self.mapper = mapper
        self.fusions = tuple(fusions)
        self.tasks = tuple(tasks)
        self.sweep = tuple(dict.fromkeys(float(value) for value in sweep))
        self.void_sweep = tuple(dict.fromkeys(float(value) for value in void_sweep))
        self.rule = rule
        self.train_vocabulary = train_vocabulary
        self.workers = workers
        self.output_dir = output_dir
        self.extras = extras or Extras()
        self.label_files = _label_file_of(self.datasets, label_files)
        self._known: dict[str, PanopticGroundTruth] = {}
        self._named: dict[str, Fusion] = {}
        self._metadata: dict[str, Any] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads ``DATASETS``, ``TEST.{PANOPTIC, MIOU_RULE, TRAIN_VOCABULARY}``,
        ``INPUT``, ``DATALOADER`` and ``OUTPUT_DIR``."""
        _require_clip_alone(cfg)
        return {
            "datasets": cfg.DATASETS.TEST,
            "mapper": PanopticTestMapper(cfg),
            "fusions": cfg.TEST.PANOPTIC.ROWS,
            "tasks": cfg.TEST.PANOPTIC.TASKS,
            "sweep": cfg.TEST.PANOPTIC.SWEEP,
            "void_sweep": cfg.TEST.PANOPTIC.VOID_SWEEP,
            "rule": cfg.TEST.MIOU_RULE,
            "train_vocabulary": train_vocabulary_name(cfg),
            "workers": cfg.DATALOADER.NUM_WORKERS,
            "output_dir": Path(cfg.OUTPUT_DIR),
            "extras": Extras.from_config(cfg, "panoptic segmentation", MEASURED),
            "label_files": cfg.TEST.PANOPTIC.LABEL_FILES,
        }

    def check(self, model: PanopticModel) -> None:
        """Refuse early what would fail late: missing files, a vocabulary without things or stuff."""
        records = {}
        areas = {}
        images = {}
        for name in self.datasets:
            truth = self._truth(name)
            if truth.files is None and (self.sweep or self._apart):
                raise InputError(
                    f'"{name}" has label maps alone, and --sweep (TEST.PANOPTIC.SWEEP), TEST.NUMBERS.NAMING and GAP '
                    "are about segments: leave them out, or the data set out of DATASETS.TEST"
                )
            self._evaluator(name, truth)
            records[name] = truth.records
            if truth.areas:
                areas[name] = truth.areas
            if truth.images:
                images[name] = truth.images
        self._metadata["names of a class"] = reading_of(model).synonyms
        self._metadata |= model.evaluation_metadata(records)
        self._check_extras(model)
        if areas:
            self._metadata["areas"] = areas
        if images:
            self._metadata["images"] = images

    def _check_extras(self, model: PanopticModel) -> None:
        """Refuse what is asked for beside the published numbers and cannot be measured."""
        for name in self.datasets:
            if self.extras.gap and "panoptic" not in self._truth(name).tasks:
                raise InputError(
                    'TEST.NUMBERS.GAP is about PQ: add "panoptic" to TEST.PANOPTIC.TASKS, or set it to False'
                )
        if self._apart and not isinstance(model, MaskModel):
            raise InputError(
                "TEST.NUMBERS.NAMING and GAP need a model that makes and names masks in two steps (`generate` and "
                f"`clip_scores`), which {type(model).__name__} does not: set them to False"
            )
        if self.extras.synonyms and "generator on disk" in self._metadata:
            raise InputError(
                "TEST.NUMBERS.SYNONYMS needs a generator: MODEL.MASK_GENERATOR.SOURCE disk has the scores of one "
                "vocabulary alone"
            )

    def metadata(self) -> dict[str, Any]:
        """Settings that decide the numbers beside weights and configuration, known after `check`."""
        return self._metadata

    def _classes_kept(self, model: PanopticModel) -> contextlib.AbstractContextManager[None]:
        return own_classes_kept(model)

    def _protocol(self, name: str, model: PanopticModel) -> MeasuringProtocol:
        truth = self._truth(name)
        reading = reading_of(model)
        seen = f"a name as {self.train_vocabulary} spells it"
        if counts_all(name, self.train_vocabulary):
            seen = f"all, since {self.train_vocabulary} has them in its words"
        return MeasuringProtocol.of_model(
            reading,
            words=words_text(truth.vocabulary.name, len(truth.vocabulary)),
            size=size_text(self.mapper, reading.size),
            seen=seen_text(truth.seen, seen),
            rule=f"mIoU over classes by rule {self.rule}" if "semantic" in truth.tasks else "",
            beside=self.extras.text(),
        )

    def _passes(self, name: str, model: PanopticModel) -> Iterator[Pass]:
        truth = self._truth(name)
        batches = functools.partial(evaluation_batches, truth.records, self.mapper, self.workers)
        model.set_vocabulary(truth.vocabulary, seen=truth.seen)
        voids = (model.void_discount, self.void_sweep)
        named = named_fusions(self.fusions, *model.exponents, truth.tasks, *voids)
        self._named = named
        asked = named | sweep_fusions(self.sweep, truth.seen, model.void_discount)
        yield Pass(batches(), self._evaluator(name, truth), {"fusions": asked})
        renamed = renamed_vocabularies(truth.vocabulary, self.extras.synonyms, name)
        for number, vocabulary in enumerate(renamed, 1):
            logger.info("synonym test, vocabulary %d of %d:", number, len(renamed))
            # The classes are the same, and so are those that are seen.
            model.set_vocabulary(vocabulary, seen=truth.seen)
            yield Pass(batches(), self._evaluator(name, truth, main=False), {"fusions": named})
        model.set_vocabulary(truth.vocabulary, seen=truth.seen)
        if self.extras.oracle:
            logger.info("oracle words, of each image its own classes:")
            ask = functools.partial(_with_true_classes, model, truth, named)
            yield Pass(batches(), self._evaluator(name, truth, main=False), ask=ask)
        if self._apart:
            yield self._true_masks(name, truth, model, batches())

    @property
    def _apart(self) -> bool:
        """Whether naming and masks are measured apart."""
        return self.extras.naming or self.extras.gap

    def _true_masks(
        self, name: str, truth: PanopticGroundTruth, model: Any, batches: Batches
    ) -> Pass:
        evaluator = TrueMaskEvaluator(
            dataset_name=name,
            vocabulary=truth.vocabulary,
            image_ids=truth.image_ids,
            seen=truth.seen,
        )
        ask = TrueMasks(model, truth.vocabulary, queries=self.extras.gap)
        return Pass(batches, evaluator, ask=ask)

    def _numbers(self, name: str, outputs: list[dict[str, Any]]) -> dict[str, Any]:
        """For each fusion means in percent (those of `panoptic_results`, "AP..." of `instance_results`, those
        of `sem_seg_results`, and those that ``TEST.NUMBERS`` asks for), "alpha", "beta" and "images", and
        "void_discount" where a fusion has one; with a sweep also "sweep", see `fusion_report`.
        """
        numbers, *more = outputs
        apart = more.pop()["true_masks"] if self._apart else {}
        oracle = more.pop() if self.extras.oracle else None
        results: dict[str, Any] = {}
        discounted = any(fusion.void_discount for fusion in self._named.values())
        for fusion, (alpha, beta, _, void_discount) in self._named.items():
            own = numbers[fusion] | {"alpha": alpha, "beta": beta}
            if discounted:
                own["void_discount"] = void_discount
            if oracle is not None:
                own |= {f"oracle-{key}": v for key, v in _measures(oracle[fusion]).items()}
            if more:
                own |= synonym_results([_measures(one[fusion]) for one in more])
            if self._apart:
                own |= apart
            if self.extras.gap:
                parts = ("PQ", "true-names-PQ", "best-queries-PQ")
                own |= gap_results(*(own[part] for part in parts))
            results[fusion] = own
        if self.sweep:
            results["sweep"] = sweep_results(self.sweep, self._truth(name).seen, numbers)
        return results

    def _evaluator(
        self, name: str, truth: PanopticGroundTruth, main: bool = True
    ) -> FusionsEvaluator:
        """Evaluators of every fusion of a data set; of the main pass with files, sweep and numbers beside."""
        cells = sweep_fusions(self.sweep, truth.seen) if main else {}
        return FusionsEvaluator(
            fusions={
                fusion: {
                    task: self._task_evaluator(
                        name, truth, task, self.output_dir / fusion if main else None
                    )
                    for task in (*truth.tasks, *_further_tasks(truth))
                }
                for fusion in (*self.fusions, *map(void_name, self.void_sweep))
            },
            quiet={cell: self._panoptic_evaluator(name, truth, None) for cell in cells},
        )

    def _task_evaluator(
        self, name: str, truth: PanopticGroundTruth, task: str, folder: Path | None
    ) -> DatasetEvaluator:
        if task == "panoptic":
            return self._panoptic_evaluator(name, truth, folder)
        if task == "semantic":
            return SemSegAccuracyEvaluator(
                dataset_name=name,
                class_names=truth.vocabulary.names,
                ignore_label=truth.ignore_label,
                seen=truth.seen,
                rule=self.rule,
                beside=Beside(truth.similarity, self.extras.boundary) if folder else None,
                output_dir=folder,
            )
        if task == CITYSCAPES_INSTANCES:
            return CityscapesAPEvaluator(
                dataset_name=name,
                vocabulary=truth.vocabulary,
                image_ids=truth.image_ids,
                seen=truth.seen,
            )
        assert truth.instances is not None
        return InstanceAPEvaluator(
            dataset_name=name,
            vocabulary=truth.vocabulary,
            ground_truth=truth.instances,
            seen=truth.seen,
            similarity=truth.similarity if folder else None,
            output_dir=folder,
        )

    def _panoptic_evaluator(
        self, name: str, truth: PanopticGroundTruth, folder: Path | None
    ) -> PanopticQualityEvaluator:
        assert truth.files is not None
        return PanopticQualityEvaluator(
            dataset_name=name,
            vocabulary=truth.vocabulary,
            image_ids=truth.image_ids,
            seen=truth.seen,
            panoptic_json=truth.files.path(truth.files.panoptic_json),
            similarity=truth.similarity if folder else None,
            true_names=self.extras.gap and folder is not None,
            output_dir=folder,
        )

    def _truth(self, name: str) -> PanopticGroundTruth:
        """Vocabulary, records and ground truth of a data set, read once."""
        if name not in self._known:
            words = self.label_files.get(name, "")
            read = read_semantic_only if is_semantic_only(name) else read_panoptic_ground_truth
            truth = read(name, self.tasks, self.train_vocabulary, words)
            similarity = self.extras.similarity_of(truth.vocabulary)
            self._known[name] = truth._replace(similarity=similarity)
        return self._known[name]

    def tables(self, results: Results, style: str = "simple") -> dict[str, str]:
        """All means of each data set and fusion, the paper's Table 6 of those that have segments, and the sweep of
        each data set."""
        model = self.output_dir.name or "model"
        tables = {"All data sets in percent": run_table(results, style)}
        own = {name: fusions for name, fusions in results.items() if not is_semantic_only(name)}
        if own or not results:
            tables["The paper's Table 6"] = paper_table({model: own}, style=style)
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


def _further_tasks(truth: PanopticGroundTruth) -> tuple[str, ...]:
    """What is measured of a data set by rules of its own, beside its tasks."""
    files = truth.files
    cityscapes = files is not None and files.evaluator == "cityscapes_panoptic_seg"
    return (CITYSCAPES_INSTANCES,) if cityscapes and "instances" in truth.tasks else ()


def _label_file_of(datasets: Sequence[str], files: Sequence[str]) -> dict[str, str]:
    """The label file of each data set that has one."""
    if files and len(files) != len(datasets):
        raise InputError(
            f"TEST.PANOPTIC.LABEL_FILES has {len(files)} entries, DATASETS.TEST {len(datasets)}: give one for each, "
            '"" for a data set\'s own names'
        )
    return dict(zip(datasets, files))


def _require_clip_alone(cfg: CfgNode) -> None:
    """Refuse fusions of masks that come without class scores."""
    test = cfg.TEST.PANOPTIC
    given = cfg.MODEL.MASK_GENERATOR.SOURCE == "masks"
    if given and (tuple(test.ROWS) != ("clip",) or test.SWEEP or test.VOID_SWEEP):
        raise InputError(
            "masks of MODEL.MASK_GENERATOR.SOURCE masks are named by CLIP alone: set TEST.PANOPTIC.ROWS \"('clip',)\", "
            "and leave SWEEP and VOID_SWEEP empty"
        )


def _sweeps(results: Results) -> dict[str, Sweep]:
    """The sweep of each data set that has one."""
    return {name: numbers["sweep"] for name, numbers in results.items() if "sweep" in numbers}


def _measures(numbers: Mapping[str, float]) -> dict[str, float]:
    """PQ, AP, mIoU and the like of one fusion, without counts."""
    return {key: value for key, value in numbers.items() if key.startswith(MEASURES)}


def _with_true_classes(
    model: Any, truth: PanopticGroundTruth, fusions: Mapping[str, Any], samples: Sequence[Sample]
) -> Any:
    """A model's outputs where of each image the classes alone are given that are in its ground truth."""
    index_of = truth.vocabulary.dataset_id_to_index
    given = []
    for sample in samples:
        if truth.files is None:
            classes = label_map_classes(truth, sample)
        else:
            classes = sorted({index_of[one["category_id"]] for one in sample["segments_info"]})
        given.append({**sample, "classes": classes})
    return model(given, fusions=fusions)
