"""Region recognition of a model on data sets and input sizes, with tables and curves."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.utils import comm

from clipself_seg.data.datasets.catalog import vocabulary_name
from clipself_seg.data.datasets.coco import region_records
from clipself_seg.data.loader import evaluation_batches
from clipself_seg.data.mappers.regions import RegionMapper
from clipself_seg.data.records import Record
from clipself_seg.data.segments import MaskResize
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.evaluation.base import Evaluation, run_model
from clipself_seg.evaluation.regions.accuracy import RegionAccuracyEvaluator
from clipself_seg.evaluation.regions.report import plot_size_curve, size_table
from clipself_seg.models.protocol import RegionModel

# Data set -> side of the student's input in pixels -> name of a number -> the number.
Results = dict[str, dict[int, dict[str, float]]]
logger = logging.getLogger(__name__)


class RegionEvaluation(Evaluation[RegionModel]):
    """Evaluates models that score regions (`RegionReader`, `CLIPSelf`), all processes together."""

    @configurable
    def __init__(
        self,
        *,
        datasets: Sequence[str],
        sizes: Sequence[int],
        read: Sequence[str],
        mask_resize: MaskResize,
        workers: int,
        output_dir: Path,
    ) -> None:
        """
        Args:
            datasets: names of panoptic data sets, see `data.datasets.coco`.
            sizes: sides in pixels of the square input.
            read: readouts, out of `clipself_seg.config.READINGS`.
            mask_resize: rule by which masks are resized to tokens, see `token_masks`.
            workers: number of worker processes of each loader.
            output_dir: folder for tables by class, and the curve if there are several sizes.
        """
        super().__init__(datasets)
        self.sizes = tuple(sizes)
        self.read = tuple(read)
        self.mask_resize = mask_resize
        self.workers = workers
        self.output_dir = output_dir
        self._known: dict[str, tuple[Vocabulary, list[Record]]] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads ``DATASETS.TEST``, ``TEST.REGIONS``, ``DATALOADER`` and ``OUTPUT_DIR``."""
        return {
            "datasets": cfg.DATASETS.TEST,
            "sizes": cfg.TEST.REGIONS.SIZES or (cfg.INPUT.REGIONS.STUDENT_SIZE,),
            "read": cfg.TEST.REGIONS.READ,
            "mask_resize": cfg.TEST.REGIONS.MASK_RESIZE,
            "workers": cfg.DATALOADER.NUM_WORKERS,
            "output_dir": Path(cfg.OUTPUT_DIR),
        }

    def __call__(self, model: RegionModel) -> Results:
        """Evaluates on every data set at every size; every process gets the same numbers.

        Args:
            model: the model, which has the classes of the last data set afterwards; its mode is
                restored.
        """
        return self._each_dataset(model)

    def check(self, model: RegionModel) -> None:
        """Refuse early what would fail late: missing data sets, sizes and readouts that do not fit."""
        model.check_readouts(self.sizes, self.read)
        for name in self.datasets:
            self._records(name)

    def _dataset(self, name: str, model: RegionModel) -> dict[int, dict[str, float]]:
        vocabulary, records = self._records(name)
        model.set_vocabulary(vocabulary)
        results = {size: self._size(name, vocabulary, records, size, model) for size in self.sizes}
        if len(self.sizes) > 1 and comm.is_main_process():
            logger.info("Accuracy over the input size on %s:\n%s", name, size_table(results))
            plot_size_curve({name: results}, self.output_dir / f"size_curve_{name}.png")
        return results

    def _size(
        self,
        name: str,
        vocabulary: Vocabulary,
        records: list[Record],
        size: int,
        model: RegionModel,
    ) -> dict[str, float]:
        mapper = RegionMapper(
            image_size=size,
            crop_size=model.image_size,
            stride=model.patch_size,
            vocabulary=vocabulary,
            read=self.read,
            mask_resize=self.mask_resize,
        )
        several = len(self.sizes) > 1
        evaluator = RegionAccuracyEvaluator(
            dataset_name=name,
            class_names=vocabulary.names,
            output_dir=self.output_dir / f"size_{size}" if several else self.output_dir,
        )
        batches = evaluation_batches(records, mapper, self.workers)
        return run_model(model, batches, evaluator)["regions"]

    def _records(self, name: str) -> tuple[Vocabulary, list[Record]]:
        """Vocabulary and records of a data set, read once."""
        if name not in self._known:
            vocabulary = load_vocabulary(vocabulary_name(name))
            self._known[name] = vocabulary, region_records(name, vocabulary)
        return self._known[name]
