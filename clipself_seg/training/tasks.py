"""The tasks of ``train_net.py``, each with the data of a training, the evaluation, and the result's file.

A further task is a class here that is entered in `TASKS`, or somebody else's by `extend.register_task`; a model belongs
to the task that its `Model.task` names.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from clipself_seg.data.annotations import Record
from clipself_seg.data.datasets import records as data_records
from clipself_seg.data.datasets.table import DetectionSet, PanopticSet, SemSegSet
from clipself_seg.data.mappers.detection import DetectionTrainMapper
from clipself_seg.data.mappers.distill import CaptionMapper, DistillMapper, RegionTextMapper
from clipself_seg.data.mappers.panoptic import PanopticTrainMapper
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.mappers.sem_seg import SemSegTrainMapper
from clipself_seg.data.shards import ShardStream, is_shards, shards_of
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError, known
from clipself_seg.evaluation.detection_evaluation import DetectionEvaluation
from clipself_seg.evaluation.evaluation_base import Evaluation
from clipself_seg.evaluation.panoptic.panoptic_evaluation import PanopticEvaluation
from clipself_seg.evaluation.region_accuracy import RegionEvaluation
from clipself_seg.evaluation.semantic_evaluation import SemanticEvaluation
from clipself_seg.imports import OR_IMPORT
from clipself_seg.models import model_protocols
from clipself_seg.models.build import architecture
from clipself_seg.registry import Registry


class TrainingData(NamedTuple):
    """Records of a training and the mapper that makes samples of them.

    Attributes:
        records: images with their annotations, or a stream of images.
        mapper: (record, number of the draw) -> sample, or None for another image in its place.
        vocabulary: the training vocabulary, for `TrainableModel.setup_training`; None where training needs no classes.
    """

    records: Sequence[Record] | ShardStream
    mapper: Callable[[Record, int], Sample | None]
    vocabulary: Vocabulary | Sequence[str] | None = None


class Task(abc.ABC):
    """One kind of training and evaluation.

    Attributes:
        cfg: configuration of the run.
        result_file: name of what `TrainableModel.export` writes into OUTPUT_DIR, by default a checkpoint for
            MODEL.WEIGHTS.
    """

    result_file = "model_final.pth"

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    @abc.abstractmethod
    def evaluation(self) -> Evaluation[Any, Any]:
        """The evaluation on DATASETS.TEST."""

    @abc.abstractmethod
    def training_data(self, model: Any) -> TrainingData:
        """The data of DATASETS.TRAIN, with their classes.

        Args:
            model: a model of this task, which is asked what it reads of samples.

        Raises:
            InputError: data that are not there, or do not fit the model.
        """


class RegionTask(Task):
    """Distillation, and region recognition; the result is a plain CLIP, which `load_clip` reads."""

    result_file = "clip_final.safetensors"

    def evaluation(self) -> RegionEvaluation:
        """Accuracy of regions."""
        return RegionEvaluation(self.cfg)

    def training_data(self, model: model_protocols.RegionModel) -> TrainingData:
        """Images, and what the target reads besides, as MODEL.CLIPSELF.TARGET says."""
        cfg, names = self.cfg, self.cfg.DATASETS.TRAIN
        if any(map(is_shards, names)):
            return TrainingData(self._shards(), self._distil_mapper(model))
        if cfg.MODEL.CLIPSELF.TARGET == "captions":
            return TrainingData(
                data_records.captioned_records(names), CaptionMapper(cfg, seed=cfg.SEED)
            )
        if cfg.MODEL.CLIPSELF.TARGET == "texts":
            records, nouns = data_records.region_text_records(names)
            mapper = RegionTextMapper(cfg, crop_size=model.image_size, seed=cfg.SEED)
            return TrainingData(records, mapper, nouns)
        records = data_records.distillation_records(names, cfg.INPUT.REGIONS.SOURCE)
        return TrainingData(records, self._distil_mapper(model))

    def _distil_mapper(self, model: model_protocols.RegionModel) -> DistillMapper:
        return DistillMapper(self.cfg, crop_size=model.image_size, seed=self.cfg.SEED)

    def _shards(self) -> ShardStream:
        """Images of shards with their grids: nothing else is read of them."""
        names = self.cfg.DATASETS.TRAIN
        target, source = self.cfg.MODEL.CLIPSELF.TARGET, self.cfg.INPUT.REGIONS.SOURCE
        if not all(map(is_shards, names)) or (target, source) != ("crops", "grid"):
            raise InputError(
                f"DATASETS.TRAIN has shards, of which images alone are read: give nothing beside them (now "
                f"{', '.join(map(str, names))}), MODEL.CLIPSELF.TARGET crops (now {target}) and "
                f"INPUT.REGIONS.SOURCE grid (now {source})"
            )
        batch_size = self.cfg.SOLVER.IMS_PER_BATCH
        return ShardStream(shards_of(names), batch_size=batch_size, seed=self.cfg.SEED)


class SemanticTask(Task):
    """Semantic segmentation."""

    def evaluation(self) -> SemanticEvaluation:
        """Mean IoU and its like."""
        return SemanticEvaluation(self.cfg)

    def training_data(self, model: model_protocols.SemanticModel) -> TrainingData:
        """Images and label maps."""
        names = self.cfg.DATASETS.TRAIN
        records = [record for name in names for record in data_records.sem_seg_records(name)]
        vocabulary = _shared_vocabulary(names, SemSegSet)
        ignored = {data_records.find_dataset(name, SemSegSet).ignore_label for name in names}
        if ignored != {model.ignore_label}:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {model.ignore_label}, the labels of "
                f"DATASETS.TRAIN have {sorted(ignored)}: set it to that"
            )
        mapper = SemSegTrainMapper(
            self.cfg,
            seed=self.cfg.SEED,
            num_classes=len(vocabulary),
            ignore_label=model.ignore_label,
        )
        return TrainingData(records, mapper, vocabulary)


class PanopticTask(Task):
    """Panoptic segmentation."""

    def evaluation(self) -> PanopticEvaluation:
        """PQ, mAP and mIoU."""
        return PanopticEvaluation(self.cfg)

    def training_data(self, model: model_protocols.PanopticModel) -> TrainingData:
        """Images and segments."""
        names = self.cfg.DATASETS.TRAIN
        vocabulary = _shared_vocabulary(names, PanopticSet)
        tasks = ("panoptic", "captions") if model.needs_captions else ("panoptic",)
        records = [
            record for name in names for record in data_records.panoptic_set_records(name, tasks)
        ]
        mapper = PanopticTrainMapper(self.cfg, seed=self.cfg.SEED, vocabulary=vocabulary)
        return TrainingData(records, mapper, vocabulary)


class DetectionTask(Task):
    """Detection."""

    def evaluation(self) -> DetectionEvaluation:
        """AP of boxes and masks."""
        return DetectionEvaluation(self.cfg)

    def training_data(self, model: model_protocols.DetectionModel) -> TrainingData:
        """Images and objects."""
        names = self.cfg.DATASETS.TRAIN
        vocabulary = _shared_vocabulary(names, DetectionSet)
        records = [
            record
            for name in names
            for record in data_records.detection_records(name, training=True, masks=model.has_masks)
        ]
        mapper = DetectionTrainMapper(self.cfg, seed=self.cfg.SEED, masks=model.has_masks)
        return TrainingData(records, mapper, vocabulary)


def _shared_vocabulary(
    names: Iterable[str], kind: type[SemSegSet] | type[PanopticSet] | type[DetectionSet]
) -> Vocabulary:
    """The one class list of all training data sets of a kind."""
    lists = {data_records.find_dataset(name, kind).vocabulary for name in names}
    if len(lists) != 1:
        named = sorted(map(str, lists))
        raise InputError(f"DATASETS.TRAIN must share one vocabulary, these have {named}")
    return Vocabulary.load(lists.pop())


# What `Model.task` says -> the task.
TASKS = Registry[Callable[[CfgNode], Task]]()
TASKS.enter("regions", RegionTask)
TASKS.enter("whole_images", RegionTask)
TASKS.enter("semantic", SemanticTask)
TASKS.enter("panoptic", PanopticTask)
TASKS.enter("detection", DetectionTask)


def task_of(cfg: CfgNode) -> Task:
    """The task that the configured meta-architecture belongs to.

    Raises:
        InputError: there is no such meta-architecture, or no such task.
    """
    name = architecture(cfg).task()
    of = f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
    return TASKS[known(name, TASKS, "task", origin=of, hint=OR_IMPORT)](cfg)
