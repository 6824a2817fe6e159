"""Zero-shot region recognition: mean class accuracy of boxes, masks and crops.

Legend: n regions, K classes. A readout is how a region becomes an embedding: boxes, masks, crops,
attention_boxes, attention_masks. The rank of a region is the number of classes before its own when
they are sorted by score, 0 when it is recognised.

The reference rounds intermediate results to float16, which moves an accuracy by less than 0.05
points; here regions are counted as integers and divided in float64.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from clipself_seg.errors import InputError
from clipself_seg.evaluation.regions.report import ABOUT, region_table
from clipself_seg.files import write_json

NO_CLASS = -1


class Grouping(NamedTuple):
    """Purity of an image, in [0, 1]; NaN for an image that has nothing to tell apart.

    Attributes:
        purity: see `neighbour_purity`.
        chance: what it is on average where neighbours are drawn at random.
    """

    purity: float
    chance: float


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
    grouping whatever the sizes. Classes of a single token are not asked, but are there to be mistaken for.

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
        purities.append(float((classes_N[nearest_nm] == label).double().mean()))
        chances.append((size - 1) / (len(classes_N) - 1))
    if len(labels) < 2 or not purities:
        return Grouping(math.nan, math.nan)
    return Grouping(sum(purities) / len(purities), sum(chances) / len(chances))


logger = logging.getLogger(__name__)

TOP = (1, 5)
GROUPS = ("thing", "stuff")


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


class RegionAccuracyEvaluator(DatasetEvaluator):
    """Top-1 and top-5 mean class accuracy among ALL classes, by readout and group.

    Ranks of all processes are merged before anything is averaged, and an image that several
    processes evaluated (a sampler's padding) counts once, so the result does not depend on the
    number of processes.
    """

    def __init__(
        self,
        *,
        dataset_name: str,
        class_names: Sequence[str],
        output_dir: str | os.PathLike[str] | None = None,
        earlier: RegionAccuracyEvaluator | None = None,
    ) -> None:
        """
        Args:
            dataset_name: name of the data set for messages and the file.
            class_names: names of the K classes, for the table by class.
            output_dir: folder where the main process writes `region_accuracy_<data set>.json`; None
                writes nothing.
            earlier: evaluator that this process has given the same images; what it knows of readouts that
                are not among the outputs here is taken over.
        """
        self.dataset_name = dataset_name
        self.class_names = list(class_names)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.earlier = earlier
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._images: dict[Any, dict[str, np.ndarray]] = {}
        self._groupings: dict[Any, Grouping] = {}

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
    ) -> None:
        """Rank the labels of a batch.

        Args:
            inputs: samples with "image_id", "file_name", "labels" (n,) int64 and "isthing" (n,)
                bool, and "masks" (n, h, w) bool for outputs with "dense".
            outputs: for each sample "scores": {readout: (n, K)}, and if grouping is measured "dense" (E, h, w).

        Raises:
            FloatingPointError: a score is not finite.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            labels = sample["labels"]
            image = {"labels": labels.cpu().numpy(), "isthing": sample["isthing"].cpu().numpy()}
            for readout, scores in output["scores"].items():
                if not torch.isfinite(scores).all():
                    raise FloatingPointError(
                        f"the scores of {readout} in {sample['file_name']} are not finite: "
                        "the weights or the precision are at fault"
                    )
                image[readout] = label_ranks(scores, labels.to(scores.device)).cpu().numpy()
            known = self.earlier._images[sample["image_id"]] if self.earlier else {}
            self._images[sample["image_id"]] = known | image
            if "dense" in output:
                self._groupings[sample["image_id"]] = _grouping(sample, output["dense"])

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Merge all processes and average.

        Returns:
            {"regions": {"boxes.thing.top1": percent, ..., "thing.regions": count, "thing.classes":
            count, ..., "images": count}}, the same in every process. A group without regions has
            no accuracies. With grouping, "grouping.purity" and "grouping.chance", in percent, too.

        Raises:
            InputError: the data set has no region at all (in every process, so that none waits).
        """
        merged: dict[Any, dict[str, np.ndarray]] = {}
        for images in comm.all_gather(self._images):
            merged = {**images, **merged}
        regions = _concatenate(merged.values())
        if len(regions.get("labels", ())) == 0:
            raise InputError(
                f'"{self.dataset_name}" has no region to recognise in {len(merged)} images: '
                "its panoptic ground truth is blank or all segments are too small"
            )
        results = region_results(regions, len(self.class_names)) | {"images": float(len(merged))}
        results |= grouping_results(_merged_groupings(self._groupings))
        if comm.is_main_process():
            self._report(results, regions)
        return {"regions": results}

    def _report(self, results: dict[str, float], regions: dict[str, np.ndarray]) -> None:
        table = region_table({self.dataset_name: results}, "data set")
        logger.info("%s:\n%s", ABOUT, table)
        if "grouping.purity" in results:
            logger.info(
                "Grouping: %.1f %% of the nearest tokens of a token are of its class; at random %.1f %%",
                results["grouping.purity"],
                results["grouping.chance"],
            )
        if self.output_dir is not None:
            content = {
                "dataset": self.dataset_name,
                "results": results,
                "classes": class_table(regions, self.class_names),
            }
            write_json(self.output_dir / f"region_accuracy_{self.dataset_name}.json", content)


def region_results(regions: Mapping[str, np.ndarray], num_classes: int) -> dict[str, float]:
    """Accuracies in percent and counts, by readout and group.

    Args:
        regions: "labels" (n,), "isthing" (n,) and for each readout its ranks (n,).
        num_classes: number of classes, K.
    """
    results: dict[str, float] = {}
    labels = regions["labels"]
    isthing = regions["isthing"]
    for group in GROUPS:
        chosen = isthing if group == "thing" else ~isthing
        results[f"{group}.regions"] = float(chosen.sum())
        results[f"{group}.classes"] = float(len(np.unique(labels[chosen])))
        if not chosen.any():
            continue
        for readout in _readouts(regions):
            ranks = regions[readout][chosen]
            for k in TOP:
                accuracy = mean_class_accuracy(ranks, labels[chosen], num_classes, k)
                results[f"{readout}.{group}.top{k}"] = 100 * accuracy
    return results


def grouping_results(groupings: Iterable[Grouping]) -> dict[str, float]:
    """Means over images in percent, of those that have something to tell apart; nothing if none has."""
    known = [one for one in groupings if not math.isnan(one.purity)]
    if not known:
        return {}
    return {
        "grouping.purity": 100 * sum(one.purity for one in known) / len(known),
        "grouping.chance": 100 * sum(one.chance for one in known) / len(known),
    }


def _grouping(sample: Mapping[str, Any], dense_Ehw: Tensor) -> Grouping:
    classes_hw = token_classes(sample["masks"], sample["labels"]).to(dense_Ehw.device)
    return neighbour_purity(dense_Ehw.flatten(1).T, classes_hw.flatten())


def _merged_groupings(own: dict[Any, Grouping]) -> list[Grouping]:
    """Those of all processes, each image once, in an order that does not depend on their number."""
    merged = {image: one for part in comm.all_gather(own) for image, one in part.items()}
    return [merged[image] for image in sorted(merged, key=str)]


def class_table(
    regions: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """One row for each class that has regions, with its accuracies in percent.

    Args:
        regions: "labels" (n,), "isthing" (n,) and for each readout its ranks (n,).
        class_names: names of the K classes.
    """
    labels = regions["labels"]
    isthing = regions["isthing"]
    num_classes = len(class_names)
    accuracies = {
        f"{readout}.top{k}": 100 * class_accuracies(regions[readout], labels, num_classes, k)
        for readout in _readouts(regions)
        for k in TOP
    }
    return [
        {
            "index": int(index),
            "name": class_names[index],
            "group": "thing" if isthing[labels == index][0] else "stuff",
            "regions": int((labels == index).sum()),
            **{key: float(values[index]) for key, values in accuracies.items()},
        }
        for index in np.unique(labels)
    ]


def _readouts(regions: Mapping[str, np.ndarray]) -> list[str]:
    return [key for key in regions if key not in ("labels", "isthing")]


def _concatenate(images: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenates the arrays of all images, key by key."""
    images = list(images)
    return {key: np.concatenate([image[key] for image in images]) for key in (images or [{}])[0]}
