"""Region recognition of a model on data sets and input sizes, with tables and curves."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
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
from clipself_seg.evaluation.base import SYNONYMS, Evaluation, Pass, Results
from clipself_seg.evaluation.regions.accuracy import RegionAccuracyEvaluator
from clipself_seg.evaluation.regions.report import (
    ABOUT,
    plot_size_curve,
    region_table,
    size_table,
)
from clipself_seg.models.protocol import RegionModel

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
            read: readouts, out of `clipself_seg.config.READOUTS`.
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

    def metadata(self) -> dict[str, str]:
        """Settings that decide the numbers beside weights and configuration."""
        return {"names of a class": SYNONYMS["mean"]}

    def check(self, model: RegionModel) -> None:
        """Refuse early what would fail late: missing data sets, sizes and readouts that do not fit."""
        model.check_readouts(self.sizes, self.read)
        for name in self.datasets:
            self._records(name)

    def _passes(self, name: str, model: RegionModel) -> Iterator[Pass]:
        vocabulary, records = self._records(name)
        model.set_vocabulary(vocabulary)
        several = len(self.sizes) > 1
        read = self.read
        earlier = None
        for size in self.sizes:
            mapper = RegionMapper(
                image_size=size,
                crop_size=model.image_size,
                stride=model.patch_size,
                vocabulary=vocabulary,
                read=read,
                mask_resize=self.mask_resize,
            )
            evaluator = RegionAccuracyEvaluator(
                dataset_name=name,
                class_names=vocabulary.names,
                output_dir=self.output_dir / f"size_{size}" if several else self.output_dir,
                earlier=earlier,
            )
            batches = evaluation_batches(records, mapper, self.workers)
            yield Pass(batches, evaluator, {"read": read})
            # Crops do not depend on the size of the input: the first pass has encoded them.
            read = tuple(readout for readout in self.read if readout != "crops")
            earlier = evaluator

    def _numbers(self, name: str, outputs: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
        """For each side of the input in pixels the accuracies, see `RegionAccuracyEvaluator`."""
        numbers = {size: output["regions"] for size, output in zip(self.sizes, outputs)}
        if len(self.sizes) > 1 and comm.is_main_process():
            logger.info("Accuracy over the input size on %s:\n%s", name, size_table(numbers))
            plot_size_curve({name: numbers}, self.output_dir / f"size_curve_{name}.png")
        return numbers

    def tables(self, results: Results, style: str = "simple") -> dict[str, str]:
        """A row for each data set; of several sizes a table for each data set, with a row for each size."""
        if len(self.sizes) > 1:
            return {
                f"{ABOUT}, over the input size on {name}": size_table(numbers, style)
                for name, numbers in results.items()
            }
        rows = {name: numbers[self.sizes[0]] for name, numbers in results.items()}
        return {ABOUT: region_table(rows, "data set", style)}

    def _report(self, results: Results) -> None:
        """Nothing: each table has been logged when its data set was finished."""

    def _records(self, name: str) -> tuple[Vocabulary, list[Record]]:
        """Vocabulary and records of a data set, read once."""
        if name not in self._known:
            vocabulary = load_vocabulary(vocabulary_name(name))
            self._known[name] = vocabulary, region_records(name, vocabulary)
        return self._known[name]
