"""What differs between the tasks of ``train_net.py``: data, optimiser groups, evaluation, result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from detectron2.config import CfgNode

from clipself_seg.data.datasets.coco import distillation_records
from clipself_seg.data.datasets.panoptic import panoptic_dataset, panoptic_set_records
from clipself_seg.data.datasets.sem_seg import sem_seg_dataset, sem_seg_records
from clipself_seg.data.mappers.distill import DistillMapper
from clipself_seg.data.mappers.panoptic import PanopticTrainMapper
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.mappers.sem_seg import SemSegTrainMapper
from clipself_seg.data.records import Record
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.base import Evaluation
from clipself_seg.evaluation.panoptic.evaluation import PanopticEvaluation
from clipself_seg.evaluation.regions.evaluation import RegionEvaluation
from clipself_seg.evaluation.sem_seg.evaluation import SemSegEvaluation, words_of_set
from clipself_seg.training.optimizer import (
    Group,
    cat_seg_groups,
    panoptic_groups,
    parameter_groups,
)


class TrainingData(NamedTuple):
    """What a model trains on."""

    records: Sequence[Record]
    mapper: Callable[[Record, int], Sample]


class Task(Protocol):
    """One kind of model."""

    def evaluation(self) -> Evaluation:
        """How it is evaluated."""

    def prepare(self, model: Any) -> TrainingData:
        """Tell the model what it trains on."""

    def groups(self, model: Any) -> list[Group]:
        """What the optimiser changes."""

    def write(self, model: Any, folder: Path) -> Path:
        """Write the result of a training."""


class DistillTask:
    """CLIPSelf and region recognition."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def evaluation(self) -> RegionEvaluation:
        """Of regions."""
        return RegionEvaluation(self.cfg)

    def prepare(self, model: Any) -> TrainingData:
        """Pictures and their regions."""
        if not hasattr(model, "export"):
            raise InputError(f"{self.cfg.MODEL.META_ARCHITECTURE} does not train: add --eval-only")
        if self.cfg.SOLVER.ACCUMULATE != 1:
            raise InputError(
                "SOLVER.ACCUMULATE must be 1 for CLIPSelf: its loss averages over all regions of a batch"
            )
        records = distillation_records(self.cfg.DATASETS.TRAIN, self.cfg.INPUT.REGIONS.SOURCE)
        mapper = DistillMapper(self.cfg, crop_size=model.image_size, seed=self.cfg.SEED)
        return TrainingData(records, mapper)

    def groups(self, model: Any) -> list[Group]:
        """Matrices with weight decay, vectors without."""
        return parameter_groups(model.parameters(), self.cfg.SOLVER.WEIGHT_DECAY)

    def write(self, model: Any, folder: Path) -> Path:
        """A plain CLIP, which `load_clip` reads."""
        return _export(model, folder / "clip_final.safetensors")


class SemSegTask:
    """CAT-Seg."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def evaluation(self) -> SemSegEvaluation:
        """Of label maps."""
        return SemSegEvaluation(self.cfg)

    def prepare(self, model: Any) -> TrainingData:
        """Pictures and label maps; the model is given the training vocabulary."""
        self._check_backbone()
        names = self.cfg.DATASETS.TRAIN
        records = [record for name in names for record in sem_seg_records(name)]
        words = self._words(names)
        if 0 < (pad_len := self.cfg.MODEL.CAT_SEG.PAD_LEN) <= len(words):
            # No padding is left to learn from, and classes that a window leaves out have no gradient.
            raise InputError(
                f"MODEL.CAT_SEG.PAD_LEN is {pad_len}, DATASETS.TRAIN has {len(words)} classes: raise "
                "PAD_LEN above the number of classes or set it to 0"
            )
        model.set_vocabulary(words)
        ignored = {sem_seg_dataset(name).ignore_label for name in names}
        if ignored != {model.ignore_label}:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {model.ignore_label}, the labels of "
                f"DATASETS.TRAIN have {sorted(ignored)}: set it to that"
            )
        mapper = SemSegTrainMapper(
            self.cfg,
            seed=self.cfg.SEED,
            num_classes=len(words),
            ignore_label=model.ignore_label,
        )
        return TrainingData(records, mapper)

    def _check_backbone(self) -> None:
        switches = self.cfg.MODEL.CAT_SEG
        guided = switches.GUIDANCE == "backbone"
        if guided and not (self.cfg.MODEL.WEIGHTS or switches.BACKBONE_WEIGHTS):
            raise InputError(
                f"the guidance backbone {self.cfg.MODEL.BACKBONE.NAME} would be random: give "
                "MODEL.CAT_SEG.BACKBONE_WEIGHTS, such as R-101.pkl, or a CAT-Seg checkpoint as "
                'MODEL.WEIGHTS ("random" is taken literally)'
            )

    def _words(self, names: Sequence[str]) -> Vocabulary | list[str]:
        shared = _shared_vocabulary(sem_seg_dataset(name).vocabulary for name in names)
        path = self.cfg.MODEL.SEM_SEG_HEAD.TRAIN_CLASS_JSON
        return words_of_set("TRAIN_CLASS_JSON", path, names[0], len(shared)) if path else shared

    def groups(self, model: Any) -> list[Group]:
        """See `cat_seg_groups`."""
        return cat_seg_groups(self.cfg, model)

    def write(self, model: Any, folder: Path) -> Path:
        """A checkpoint under CAT-Seg's own names, for MODEL.WEIGHTS."""
        return _export(model, folder / "model_final.pth")


class PanopticTask:
    """Mask generator and CLIP, fused."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def evaluation(self) -> PanopticEvaluation:
        """Of panoptic, instance and semantic segmentation."""
        return PanopticEvaluation(self.cfg)

    def prepare(self, model: Any) -> TrainingData:
        """Pictures and segments; the model is given the training vocabulary."""
        if model.generator is None:
            raise InputError("MODEL.MASK_GENERATOR.SOURCE disk does not train: add --eval-only")
        names = self.cfg.DATASETS.TRAIN
        words = _shared_vocabulary(panoptic_dataset(name).vocabulary for name in names)
        model.set_vocabulary(words)
        chosen = self.cfg.MODEL.MASK_GENERATOR
        grounded = chosen.VARIANT == "caption"
        if grounded and chosen.GROUNDING_WEIGHT <= 0:
            raise InputError(
                "MODEL.MASK_GENERATOR.GROUNDING_WEIGHT 0 leaves the caption model's words untrained: give "
                "it a weight above 0 and captions, or train MODEL.MASK_GENERATOR.VARIANT label"
            )
        tasks = ("panoptic", "captions") if grounded else ("panoptic",)
        records = [record for name in names for record in panoptic_set_records(name, tasks)]
        mapper = PanopticTrainMapper(self.cfg, seed=self.cfg.SEED, vocabulary=words)
        return TrainingData(records, mapper)

    def groups(self, model: Any) -> list[Group]:
        """See `panoptic_groups`."""
        return panoptic_groups(self.cfg, model)

    def write(self, model: Any, folder: Path) -> Path:
        """A checkpoint under ODISE's names, for MODEL.WEIGHTS."""
        return _export(model, folder / "model_final.pth")


def _shared_vocabulary(names: Iterable[str]) -> Vocabulary:
    """The one class list of all training data sets."""
    found = set(names)
    if len(found) != 1:
        raise InputError(f"DATASETS.TRAIN must share one vocabulary, these have {sorted(found)}")
    return load_vocabulary(found.pop())


def _export(model: Any, path: Path) -> Path:
    model.export(path)
    return path


# Meta-architecture -> task, where it is not distillation.
TASKS: dict[str, type[SemSegTask] | type[PanopticTask]] = {
    "CATSeg": SemSegTask,
    "OpenPanoptic": PanopticTask,
}


def task_of(cfg: CfgNode) -> Task:
    """The task that a meta-architecture belongs to."""
    return TASKS.get(cfg.MODEL.META_ARCHITECTURE, DistillTask)(cfg)
