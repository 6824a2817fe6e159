"""Turns class probabilities and masks into the outputs of a panoptic model.

Shapes: Q queries, K classes, H x W pixels of the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from clipself_seg.heads.fusion import TASKS
from clipself_seg.heads.panoptic.panoptic_merge import (
    merge_instances,
    merge_panoptic,
    merge_semantic,
    semantic_labels,
)


@dataclasses.dataclass(frozen=True)
class FusionSettings:
    """How the scores of generator and CLIP become those that a model returns.

    Attributes:
        alpha: CLIP's exponent of seen classes where both are fused, in [0, 1].
        beta: the same of all other classes.
        of_weights: those of "alpha" and "beta" that a checkpoint which carries them replaces.
        mode: whose scores are returned, a `FusionMode`.
        valid_mask: masks of which CLIP has no embedding keep the generator's scores alone.
    """

    alpha: float = 0.35
    beta: float = 0.65
    of_weights: tuple[str, ...] = ("alpha", "beta")
    mode: str = "fused"
    valid_mask: bool = True


@dataclasses.dataclass(frozen=True)
class MergeSettings:
    """Settings by which images are padded, and probabilities and masks become outputs.

    Attributes:
        object_threshold: probability that a query's class has to exceed in `merge_panoptic`, in [0, 1].
        overlap_threshold: smallest fraction of its mask that a query has to win there, in [0, 1].
        top_k: number of instances that `merge_instances` keeps.
        size_divisibility: pixels of which the sides of the generator's canvas are multiples.
        padding: grey value of the canvas around an image, 0 to 255.
    """

    object_threshold: float = 0.0
    overlap_threshold: float = 0.8
    top_k: int = 100
    size_divisibility: int = 64
    padding: int = 0


def make_outputs(
    probs: Tensor,
    masks: Tensor,
    things: Sequence[int],
    settings: MergeSettings,
    tasks: Sequence[str] = TASKS,
    labels: bool = False,
) -> dict[str, Any]:
    """Makes the outputs of an image, under Detectron2's names.

    Args:
        probs: class probabilities of each query, (Q, K + 1), void last.
        masks: mask logits of each query, (Q, H, W).
        things: indices of the thing classes.
        settings: thresholds and numbers of the merges.
        tasks: outputs to make, out of `TASKS`.
        labels: whether "semantic" is the best class of each pixel, "sem_seg_labels" (H, W), in place
            of all scores, "sem_seg" (K, H, W).

    Raises:
        ValueError: an unknown task, or probabilities and masks that the merges refuse.
    """
    if unknown := set(tasks) - set(TASKS):
        raise ValueError(f"no task {sorted(unknown)}: choose from {', '.join(TASKS)}")
    outputs: dict[str, Any] = {}
    if "panoptic" in tasks:
        thresholds = (settings.object_threshold, settings.overlap_threshold)
        outputs["panoptic_seg"] = merge_panoptic(probs, masks, things, *thresholds)
    if "instances" in tasks:
        outputs["instances"] = merge_instances(probs, masks, things, settings.top_k)
    if "semantic" in tasks and labels:
        outputs["sem_seg_labels"] = semantic_labels(probs, masks)
    elif "semantic" in tasks:
        outputs["sem_seg"] = merge_semantic(probs, masks)
    return outputs
