"""Region recognition of a model on data sets and input sizes, with tables and curves."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from clipself_seg.config import WHOLE
from clipself_seg.data.annotations import Record
from clipself_seg.data.datasets.records import (
    is_of_whole_images,
    region_records,
    vocabulary_name,
    whole_image_records,
)
from clipself_seg.data.images import MAX_PIXELS
from clipself_seg.data.loader import evaluation_batches
from clipself_seg.data.mappers.regions import RegionMapper, WholeImageMapper
from clipself_seg.data.mappers.samples import Configurable
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.base import Evaluation, Pass, Results
from clipself_seg.evaluation.protocol import MeasuringProtocol, words_text
from clipself_seg.evaluation.regions.accuracy import RegionAccuracyEvaluator
from clipself_seg.evaluation.regions.report import (
    about,
    mixture_table,
    plot_size_curve,
    region_table,
    size_table,
)
from clipself_seg.models.protocol import MixedRegionModel, RegionModel, reading_of

logger = logging.getLogger(__name__)

WHOLE_AT_ONCE = 64  # images of a batch, all of one size and one region each


class RegionEvaluation(Configurable, Evaluation[RegionModel, tuple[Vocabulary, list[Record]]]):
    """Evaluates models that score regions (`RegionReader`, `CLIPSelf`), all processes together.

    Attributes:
        sizes: sides in pixels of the square input.
        read: readouts, out of `clipself_seg.config.READOUTS`.
        grouping: whether to measure how dense features group tokens, see `neighbour_purity`.
        alphas: further fractions of the student in the mixture that a `MixedRegionModel` evaluates.
        max_pixels: largest number of pixels of an image that is decoded.
        whole_sizes: as `sizes`, of data sets of whole images; () is the CLIP's own.
    """

    sizes: Sequence[int]
    read: Sequence[str]
    grouping: bool = False
    alphas: Sequence[float] = ()
    max_pixels: int = MAX_PIXELS
    whole_sizes: Sequence[int] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._read_at: dict[str, Sequence[int]] = {}
        self.alphas = tuple(dict.fromkeys(float(alpha) for alpha in self.alphas))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Reads ``TEST.REGIONS`` and ``INPUT.MAX_PIXELS`` too."""
        return super().from_config(cfg) | {
            "sizes": cfg.TEST.REGIONS.SIZES or (cfg.INPUT.REGIONS.STUDENT_SIZE,),
            "whole_sizes": cfg.TEST.REGIONS.SIZES,
            "read": cfg.TEST.REGIONS.READ,
            "grouping": cfg.TEST.REGIONS.GROUPING,
            "alphas": cfg.TEST.REGIONS.ALPHA_SWEEP,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    def metadata(self) -> dict[str, object]:
        """Settings that decide the numbers beside weights and configuration."""
        return {"names of a class": self.synonyms}

    def check(self, model: RegionModel) -> None:
        """Refuse early what would fail late: missing data sets, sizes and readouts that do not fit."""
        super().check(model)
        asked = [self._asked(name, model) for name in self.datasets]
        for sizes, read in asked or [(self.sizes, self.read)]:
            model.check_readouts(sizes, read)

    def _asked(self, name: str, model: RegionModel) -> tuple[Sequence[int], Sequence[str]]:
        """Sizes of the input and readouts of a data set."""
        if is_of_whole_images(name):
            return self.whole_sizes or (model.image_size,), (WHOLE,)
        if model.task() == "whole_images":
            raise InputError(
                f'DATASETS.TEST has "{name}", which has regions, and {type(model).__name__} reads whole images: take '
                "MODEL.META_ARCHITECTURE RegionReader, which reads both"
            )
        return self.sizes, self.read

    def _protocol(self, name: str, model: RegionModel) -> MeasuringProtocol:
        vocabulary, _ = self.data(name)
        sizes, read = self._asked(name, model)
        rules = ", ".join(self._mapper(name, size, read, model).size_rule() for size in sizes)
        whole = is_of_whole_images(name)
        return MeasuringProtocol.of_model(
            reading_of(model),
            words=words_text(vocabulary.name, len(vocabulary)),
            background=f"none, every {'image' if whole else 'region'} has a class",
            size=rules if whole else f"{rules}; crops {model.image_size} px",
            seen="no split",
            rule=f"mean over {'images' if whole else 'classes'}, each among all classes",
        )

    def _passes(self, name: str, model: RegionModel) -> Iterator[Pass]:
        model.set_vocabulary(self.data(name)[0])
        sizes = self._read_at[name] = self._asked(name, model)[0]
        folders = [self.output_dir]
        if len(sizes) > 1:
            folders = [self.output_dir / f"size_{size}" for size in sizes]
        yield from self._sizes(name, model, folders)
        for alpha in self.alphas:
            logger.info("mixture with %g of the student:", alpha)
            with _mixed_by(cast(MixedRegionModel, model), alpha):
                yield from self._sizes(name, model, [None] * len(sizes))

    def _sizes(
        self, name: str, model: RegionModel, folders: Sequence[Path | None]
    ) -> Iterator[Pass]:
        """A pass for each size of the input, with the folder of its files."""
        vocabulary, records = self.data(name)
        sizes, read = self._asked(name, model)
        whole = is_of_whole_images(name)
        grouping = self.grouping and not whole
        # Classes of tokens follow from the masks.
        needed = ("masks",) if grouping else ()
        earlier = None
        for size, folder in zip(sizes, folders, strict=True):
            evaluator = RegionAccuracyEvaluator(
                dataset_name=name, vocabulary=vocabulary, output_dir=folder, earlier=earlier
            )
            mapper = self._mapper(name, size, (*read, *needed), model)
            batches = evaluation_batches(
                records, mapper, self.workers, WHOLE_AT_ONCE if whole else 1
            )
            ask = functools.partial(model, read=read)
            yield Pass(batches, evaluator, functools.partial(ask, dense=True) if grouping else ask)
            # Crops do not depend on the size of the input: the first pass has encoded them.
            read = tuple(readout for readout in read if readout != "crops")
            earlier = evaluator

    def _mapper(
        self, name: str, size: int, read: Sequence[str], model: RegionModel
    ) -> RegionMapper | WholeImageMapper:
        if is_of_whole_images(name):
            return model.image_mapper(size, self.max_pixels)
        return RegionMapper(
            image_size=size,
            crop_size=model.image_size,
            stride=model.patch_size,
            vocabulary=self.data(name)[0],
            read=read,
            max_pixels=self.max_pixels,
        )

    def _numbers(self, name: str, outputs: list[Results]) -> dict[int, dict[str, float]]:
        """For each side of the input in pixels the accuracies, see `RegionAccuracyEvaluator`, and those of other
        mixtures."""
        sizes = self._read_at[name]
        count = len(sizes)
        numbers = {size: output["regions"] for size, output in zip(sizes, outputs)}
        for index, size in enumerate(sizes):
            mixtures = [output["regions"] for output in outputs[count + index :: count]]
            for alpha, mixture in zip(self.alphas, mixtures, strict=True):
                numbers[size] |= {f"{mixture_prefix(alpha)}{k}": v for k, v in mixture.items()}
        if count > 1 and comm.is_main_process():
            logger.info("Accuracy over the input size on %s:\n%s", name, size_table(numbers))
            plot_size_curve({name: numbers}, self.output_dir / f"size_curve_{name}.png")
        return numbers

    def tables(self, results: Results, style: str = "simple") -> dict[str, str]:
        """A row for each data set; of several sizes a table for each data set, with a row for each size; and those of
        mixtures."""
        own = dict[str, str]()
        rows = dict[str, dict[str, Results]]()
        for name, numbers in results.items():
            title = about(numbers)
            if len(numbers) > 1:
                own[f"{title}, over the input size on {name}"] = size_table(numbers, style)
            else:
                rows.setdefault(title, {})[name] = next(iter(numbers.values()))
        own |= {title: region_table(part, "data set", style) for title, part in rows.items()}
        return own | self._mixture_tables(results, style)

    def _mixture_tables(self, results: Results, style: str) -> dict[str, str]:
        return {
            f"Mixtures with the original, {name}, {size} px": mixture_table(
                numbers, [mixture_prefix(alpha) for alpha in self.alphas], style
            )
            for name, by_size in results.items()
            for size, numbers in by_size.items()
            if self.alphas
        }

    def _report(self, results: Results) -> None:
        """Tables of mixtures, and the protocols: all others were logged when their data set was finished."""
        for title, table in self._mixture_tables(results, "simple").items():
            logger.info("%s:\n%s", title, table)
        logger.info("%s", "\n".join(self.notes(results)))

    def _read(self, name: str) -> tuple[Vocabulary, list[Record]]:
        if is_of_whole_images(name):
            return whole_image_records(name)
        vocabulary = Vocabulary.load(vocabulary_name(name))
        return vocabulary, region_records(name, vocabulary)


def mixture_prefix(alpha: float) -> str:
    """Beginning of the names of the numbers of a mixture, such as "alpha_0.7-"."""
    return f"alpha_{alpha:g}-"


@contextlib.contextmanager
def _mixed_by(model: MixedRegionModel, alpha: float) -> Iterator[None]:
    """Another fraction of the student meanwhile; a model mixes when it is switched to evaluation."""
    before = model.alpha
    model.alpha = alpha
    try:
        yield
    finally:
        model.alpha = before
        if not cast(nn.Module, model).training:
            model.eval()
