"""Zero-shot region recognition: mean class accuracy of boxes, masks and crops by data set and input size, and how well
dense features group tokens.

Legend: n regions, K classes. A readout is how a region becomes an embedding: boxes, masks, crops, attention_boxes,
attention_masks. The rank of a region is the number of classes before its own when they are sorted by score, 0 when it
is recognised.

The reference rounds intermediate results to float16, which moves an accuracy by less than 0.05 points; here regions are
counted as integers and divided in float64.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from clipself_seg.clip.runtime import widest
from clipself_seg.config import WHOLE
from clipself_seg.data.annotations import Record
from clipself_seg.data.datasets.records import (
    is_of_whole_images,
    region_records,
    whole_image_records,
)
from clipself_seg.data.images import MAX_PIXELS
from clipself_seg.data.loader import evaluation_batches
from clipself_seg.data.mappers.regions import RegionMapper, WholeImageMapper
from clipself_seg.data.mappers.samples import Configurable
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.evaluation_base import Evaluation, Pass, Results
from clipself_seg.evaluation.evaluator import ImageEvaluator, ImageId, Outputs, Samples
from clipself_seg.evaluation.measuring_protocol import MeasuringProtocol, words_text
from clipself_seg.evaluation.region_report import about, plot_size_curve, region_table
from clipself_seg.files import write_json
from clipself_seg.models.model_protocols import MixedRegionModel, RegionModel, reading_of

logger = logging.getLogger(__name__)

TOP = (1, 5)
GROUPS = ("thing", "stuff")
NO_CLASS = -1
WHOLE_AT_ONCE = 64  # images of a batch, all of one size and one region each


class RegionEvaluation(Configurable, Evaluation[RegionModel, tuple[Vocabulary, list[Record]]]):
    """Evaluates models that score regions (`RegionReader`, `CLIPSelf`), all processes together.

    Attributes:
        sizes: sides in pixels of the square input.
        read: readouts, out of `clipself_seg.config.READOUTS`.
        grouping: True to measure how dense features group tokens, see `neighbour_purity`.
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
        """Refuses early what would fail late: missing data sets, sizes and readouts that do not fit."""
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
            mixed = cast(MixedRegionModel, model)
            before = mixed.alpha
            mixed.alpha = alpha
            try:
                yield from self._sizes(name, model, [None] * len(sizes))
            finally:
                mixed.alpha = before
                if not cast(nn.Module, model).training:  # a model mixes when it is switched to this
                    mixed.eval()

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
        """Side of the input in pixels -> the accuracies, see `RegionAccuracyEvaluator`, and those of other
        mixtures."""
        sizes = self._read_at[name]
        count = len(sizes)
        numbers = {size: output["regions"] for size, output in zip(sizes, outputs)}
        for index, size in enumerate(sizes):
            mixtures = [output["regions"] for output in outputs[count + index :: count]]
            for alpha, mixture in zip(self.alphas, mixtures, strict=True):
                numbers[size] |= {f"{mixture_prefix(alpha)}{k}": v for k, v in mixture.items()}
        if count > 1 and comm.is_main_process():
            plot_size_curve({name: numbers}, self.output_dir / f"size_curve_{name}.png")
        return numbers

    def tables(self, results: Results) -> dict[str, str]:
        """A row for each data set, size of the input and mixture."""
        rows = dict[str, dict[str, Results]]()
        for name, by_size in results.items():
            own = rows.setdefault(about(by_size), {})
            for size, numbers in by_size.items():
                row = name if len(by_size) == 1 else f"{name}, {size} px"
                own[row] = numbers
                for alpha in self.alphas:
                    prefix = mixture_prefix(alpha)
                    mixture = {k: v for k, v in numbers.items() if k.startswith(prefix)}
                    own[f"{row}, alpha {alpha:g}"] = {
                        key.removeprefix(prefix): value for key, value in mixture.items()
                    }
        return {title: region_table(part, "data set") for title, part in rows.items()}

    def _read(self, name: str) -> tuple[Vocabulary, list[Record]]:
        if is_of_whole_images(name):
            return whole_image_records(name)
        return region_records(name)


def mixture_prefix(alpha: float) -> str:
    """Beginning of the names of the numbers of a mixture, such as "alpha_0.7-"."""
    return f"alpha_{alpha:g}-"


class Regions(NamedTuple):
    """The n regions of an image, or of all images.

    Attributes:
        labels: (n,) class of each region, in [0, K).
        isthing: (n,) bool.
        ranks: for each readout the ranks (n,).
    """

    labels: np.ndarray
    isthing: np.ndarray
    ranks: dict[str, np.ndarray]


class Grouping(NamedTuple):
    """Purity of an image, in [0, 1]; NaN for an image that has nothing to tell apart.

    Attributes:
        purity: see `neighbour_purity`.
        chance: its mean where neighbours are drawn at random.
    """

    purity: float
    chance: float


@dataclass(kw_only=True, eq=False)
class RegionAccuracyEvaluator(ImageEvaluator[tuple[Regions, Grouping | None]]):
    """Top-1 and top-5 mean class accuracy among ALL classes, by readout and group.

    The main process writes `region_accuracy_<data set>.json` into the folder.

    Attributes:
        earlier: evaluator that this process has given the same images; what it knows of readouts that
            are not among the outputs here is taken over.
    """

    earlier: RegionAccuracyEvaluator | None = None

    def process(self, inputs: Samples, outputs: Outputs) -> None:
        """Ranks the labels of a batch.

        Args:
            inputs: samples with "image_id", "file_name", "labels" (n,) int64 and "isthing" (n,)
                bool, and "masks" (n, h, w) bool for outputs with "dense".
            outputs: for each sample "scores": {readout: (n, K)}, and if grouping is measured "dense" (E, h, w).

        Raises:
            FloatingPointError: a score is not finite.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            labels = sample["labels"]
            ranks: dict[str, np.ndarray] = {}
            if self.earlier is not None:
                ranks |= self.earlier._images[sample["image_id"]][0].ranks
            for readout, scores in output["scores"].items():
                if not torch.isfinite(scores).all():
                    raise FloatingPointError(
                        f"the scores of {readout} in {sample['file_name']} are not finite: "
                        "the weights or the precision are at fault"
                    )
                ranks[readout] = label_ranks(scores, labels.to(scores.device)).cpu().numpy()
            regions = Regions(labels.cpu().numpy(), sample["isthing"].cpu().numpy(), ranks)
            grouping = None
            if "dense" in output:
                dense_Ehw = output["dense"]
                classes_hw = token_classes(sample["masks"], labels).to(dense_Ehw.device)
                grouping = neighbour_purity(dense_Ehw.flatten(1).T, classes_hw.flatten())
            self._images[sample["image_id"]] = regions, grouping

    def _numbers(
        self, images: Mapping[ImageId, tuple[Regions, Grouping | None]]
    ) -> dict[str, dict[str, float]]:
        """Averages over all regions.

        Returns:
            {"regions": {"boxes.thing.top1": percent, ..., "thing.regions": count, "thing.classes":
            count, ..., "images": count}}. A group without regions has
            no accuracies. With grouping, "grouping.purity" and "grouping.chance", in percent, too; of whole images,
            which count as things, "images.top1" and "images.top5", the percentage of images.

        Raises:
            InputError: the data set has no region at all.
        """
        if not any(len(regions.labels) for regions, _ in images.values()):
            raise InputError(
                f'"{self.dataset_name}" has no region to recognise in {len(images)} images: its panoptic '
                "ground truth is blank or all segments are too small"
            )
        regions = _concatenate([regions for regions, _ in images.values()])
        results = region_results(regions, len(self.vocabulary)) | {"images": float(len(images))}
        if WHOLE in regions.ranks:
            results |= {
                f"{WHOLE}.top{k}": 100 * float((regions.ranks[WHOLE] < k).mean()) for k in TOP
            }
        groupings = (grouping for _, grouping in images.values())
        results |= grouping_results(one for one in groupings if one is not None)
        if self.output_dir is not None:
            content = {
                "dataset": self.dataset_name,
                "results": results,
                "classes": class_table(regions, self.vocabulary.first_names),
            }
            write_json(self.output_dir / f"region_accuracy_{self.dataset_name}.json", content)
        return {"regions": results}


def _concatenate(images: Sequence[Regions]) -> Regions:
    """The regions of all images, all of which have the same readouts."""
    return Regions(
        np.concatenate([image.labels for image in images]),
        np.concatenate([image.isthing for image in images]),
        {
            readout: np.concatenate([image.ranks[readout] for image in images])
            for readout in images[0].ranks
        },
    )


def region_results(regions: Regions, num_classes: int) -> dict[str, float]:
    """Accuracies in percent and counts, by readout and group.

    Args:
        regions: regions of all images.
        num_classes: number of classes, K.
    """
    results: dict[str, float] = {}
    for group in GROUPS:
        chosen = regions.isthing if group == "thing" else ~regions.isthing
        labels = regions.labels[chosen]
        results[f"{group}.regions"] = float(len(labels))
        results[f"{group}.classes"] = float(len(np.unique(labels)))
        if not len(labels):
            continue
        for readout, ranks in regions.ranks.items():
            for k in TOP:
                accuracy = mean_class_accuracy(ranks[chosen], labels, num_classes, k)
                results[f"{readout}.{group}.top{k}"] = 100 * accuracy
    return results


def class_table(regions: Regions, class_names: Sequence[str]) -> list[dict[str, int | float | str]]:
    """One row for each class that has regions, with its accuracies in percent.

    Args:
        regions: regions of all images.
        class_names: names of the K classes.
    """
    labels = regions.labels
    accuracies = {
        f"{readout}.top{k}": 100 * class_accuracies(ranks, labels, len(class_names), k)
        for readout, ranks in regions.ranks.items()
        for k in TOP
    }
    return [
        {
            "index": int(index),
            "name": class_names[index],
            "group": "thing" if regions.isthing[labels == index][0] else "stuff",
            "regions": int((labels == index).sum()),
            **{key: float(values[index]) for key, values in accuracies.items()},
        }
        for index in np.unique(labels)
    ]


def label_ranks(scores_nK: Tensor, labels_n: Tensor) -> Tensor:
    """Number of classes that come before the region's own, the best first, (n,) int64.

    Classes of equal score come in their own order, as in the reference: where all scores are equal
    (an empty mask, a zero vector) the first class counts as recognised.

    Args:
        scores_nK: finite scores of every region and class, of any scale.
        labels_n: class of each region, in [0, K).
    """
    own_n1 = scores_nK.gather(1, labels_n[:, None])
    earlier_nK = torch.arange(scores_nK.shape[1], device=labels_n.device) < labels_n[:, None]
    return ((scores_nK > own_n1) | ((scores_nK == own_n1) & earlier_nK)).sum(dim=1)


def class_accuracies(ranks: np.ndarray, labels: np.ndarray, num_classes: int, k: int) -> np.ndarray:
    """Fraction of each class's regions with rank < k, (K,); NaN for classes without any."""
    counts = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels[ranks < k], minlength=num_classes)
    return np.divide(hits, counts, out=np.full(num_classes, np.nan), where=counts > 0)


def mean_class_accuracy(ranks: np.ndarray, labels: np.ndarray, num_classes: int, k: int) -> float:
    """Unweighted mean of the accuracies of the classes that have regions, in [0, 1].

    NaN if there is no region at all.

    Args:
        ranks: (n,) rank of each region, see `label_ranks`.
        labels: (n,) class of each region, in [0, K).
        num_classes: number of classes, K.
        k: a region counts as recognised if its label is among the k best.
    """
    accuracies = class_accuracies(ranks, labels, num_classes, k)
    accuracies = accuracies[~np.isnan(accuracies)]
    return float(accuracies.mean()) if len(accuracies) else float("nan")


def grouping_results(groupings: Iterable[Grouping]) -> dict[str, float]:
    """Means over images in percent, of those that have something to tell apart; nothing if none has."""
    known = [grouping for grouping in groupings if not math.isnan(grouping.purity)]
    if not known:
        return {}
    return {
        "grouping.purity": 100 * sum(grouping.purity for grouping in known) / len(known),
        "grouping.chance": 100 * sum(grouping.chance for grouping in known) / len(known),
    }


def token_classes(masks_nhw: Tensor, labels_n: Tensor) -> Tensor:
    """Class of each token, (h, w) int64; `NO_CLASS` where no region is, or regions of several classes.

    Args:
        masks_nhw: boolean masks of the regions at the resolution of the tokens.
        labels_n: their classes, 0 or more.
    """
    classes_hw = torch.full(masks_nhw.shape[1:], NO_CLASS, device=masks_nhw.device)
    several_hw = torch.zeros_like(classes_hw, dtype=torch.bool)
    for label in labels_n.unique():
        here_hw = masks_nhw[labels_n == label].any(0)
        several_hw |= here_hw & (classes_hw != NO_CLASS)
        classes_hw = torch.where(here_hw, label, classes_hw)
    return classes_hw.masked_fill(several_hw, NO_CLASS)


def neighbour_purity(tokens_NE: Tensor, classes_N: Tensor) -> Grouping:
    """Mean over classes of the fraction of a token's nearest tokens that are of its class.

    A token of a class with m others in the image is asked for its m nearest ones by cosine, so that 1 is a perfect
    grouping whatever the sizes. Classes of a single token have no purity, but count as wrong neighbours.

    Args:
        tokens_NE: dense features of one image, of any length.
        classes_N: class of each token; tokens of `NO_CLASS` do not count at all.
    """
    counts = classes_N != NO_CLASS
    classes_N = classes_N[counts]
    unit_NE = F.normalize(tokens_NE[counts].float(), dim=1)
    labels, sizes = classes_N.unique(return_counts=True)
    purities, chances = [], []
    for label, size in zip(labels.tolist(), sizes.tolist()):
        if size < 2:
            continue
        own_n = (classes_N == label).nonzero()[:, 0]
        cosines_nN = unit_NE[own_n] @ unit_NE.T
        cosines_nN.scatter_(1, own_n[:, None], -torch.inf)  # a token is no neighbour of itself
        nearest_nm = cosines_nN.topk(size - 1, dim=1).indices
        purities.append(float((classes_N[nearest_nm] == label).to(widest(classes_N.device)).mean()))
        chances.append((size - 1) / (len(classes_N) - 1))
    if len(labels) < 2 or not purities:
        return Grouping(math.nan, math.nan)
    return Grouping(sum(purities) / len(purities), sum(chances) / len(chances))
