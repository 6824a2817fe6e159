"""Evaluates the two parts of a panoptic model separately: classes of the true masks, and the best of its own masks.

Legend: n true segments, C classes, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipself_seg.data.images import truth_pixels
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.panoptic_png import read_panoptic_png
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.evaluation.evaluator import ImageEvaluator
from clipself_seg.evaluation.panoptic.gap import match_best_masks, match_named_truth
from clipself_seg.evaluation.panoptic.numbers import (
    ImageMatches,
    PanopticMap,
    group_means,
    panoptic_map,
    panoptic_quality,
)
from clipself_seg.evaluation.regions.accuracy import class_accuracies
from clipself_seg.models.panoptic.true_masks import MaskModel, mask_names, query_masks


class TrueMasks:
    """Runs a model for the classes of the true masks of an image, and for all masks of its own."""

    def __init__(self, model: MaskModel, vocabulary: Vocabulary, *, queries: bool) -> None:
        """
        Args:
            model: has been given the vocabulary.
            vocabulary: C classes of the data set.
            queries: whether the masks of its queries are wanted, too.
        """
        self.model = model
        self.vocabulary = vocabulary
        self.queries = queries

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """For each image "truth", its true segments, "names" (n,), and "queries" (Q, H, W) bool or None."""
        outputs = []
        for sample in samples:
            truth = true_segments(sample, self.vocabulary)
            shown = np.isin(truth.segment_ids, np.unique(truth.ids))
            names = np.zeros(len(shown), dtype=np.int64)
            own = truth.segment_ids[shown]
            names[shown] = mask_names(self.model, sample, truth.ids, own, len(self.vocabulary))
            masks = query_masks(self.model, sample) if self.queries else None
            outputs.append({"truth": truth, "names": names, "queries": masks})
        return outputs


def true_segments(sample: Sample, vocabulary: Vocabulary) -> PanopticMap:
    """The true segments of an image, with classes in [0, C).

    Raises:
        InputError: the PNG is missing or broken, or disagrees with the list of segments.
    """
    return panoptic_map(
        read_panoptic_png(sample["pan_seg_file_name"], truth_pixels(sample)),
        sample["segments_info"],
        vocabulary.dataset_id_to_index,
        f"{sample['pan_seg_file_name']} and the entry of image {sample['image_id']}",
    )


class _Image(NamedTuple):
    """Of an image the class and the name of each true mask, and two ways in which segments match."""

    classes: np.ndarray
    names: np.ndarray
    named: ImageMatches
    best: ImageMatches | None


class TrueMaskEvaluator(ImageEvaluator[_Image]):
    """Compares what `TrueMasks` gives with the true classes."""

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
    ) -> None:
        """Match the segments of a batch.

        Args:
            inputs: samples with "image_id".
            outputs: as `TrueMasks` gives them.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            truth, names, queries = (output[key] for key in ("truth", "names", "queries"))
            counted = ~truth.crowd & np.isin(truth.segment_ids, np.unique(truth.ids))
            self._images[sample["image_id"]] = _Image(
                truth.classes[counted],
                names[counted],
                match_named_truth(truth, names),
                None if queries is None else match_best_masks(truth, queries),
            )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Merge all processes and average.

        Returns:
            {"true_masks": "naming", the mean class accuracy of naming true masks, "true-masks-PQ" and, if masks of
            queries were given, "best-queries-PQ", in percent}, each also with the suffixes of `numbers.GROUPS`; the
            same in every process.

        Raises:
            InputError: images are missing (in every process, so that none waits).
        """
        every = self._merged()
        count = len(self.vocabulary)
        classes, names = (
            np.concatenate([np.zeros(0, dtype=np.int64), *parts])
            for parts in ([one.classes for one in every], [one.names for one in every])
        )
        # A mask that has its name has rank 0.
        values = {
            "naming": class_accuracies((names != classes).astype(np.int64), classes, count, 1),
            "true-masks-PQ": panoptic_quality([one.named for one in every], count).pq,
        }
        best = [one.best for one in every if one.best is not None]
        if best:
            values["best-queries-PQ"] = panoptic_quality(best, count).pq
        return {"true_masks": group_means(values, self.vocabulary.thing, self.seen)}
