"""From class probabilities and masks to what a panoptic model returns.

Shapes: Q queries, K classes, H x W pixels of the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from clipself_seg.heads.panoptic.panoptic_merge import (
    merge_instances,
    merge_panoptic,
    merge_semantic,
    semantic_labels,
)

TASKS = ("panoptic", "instances", "semantic")


class Fusion(NamedTuple):
    """One fusion of the scores of generator and CLIP, and the outputs that are made of it.

    Attributes:
        alpha: exponent of CLIP's scores of seen classes, in [0, 1].
        beta: exponent of CLIP's scores of all other classes, in [0, 1].
        tasks: outputs, out of `TASKS`.
    """

    alpha: float
    beta: float
    tasks: tuple[str, ...] = TASKS


@dataclasses.dataclass(frozen=True)
class MergeSettings:
    """How probabilities and masks become outputs.

    Attributes:
        object_threshold: of `merge_panoptic`.
        overlap_threshold: likewise.
        top_k: of `merge_instances`.
        size_divisibility: of the canvas that the generator sees, in pixels.
        padding: grey value of the canvas around a picture, 0 to 255.
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
    """The outputs under Detectron2's names.

    Args:
        probs: (Q, K + 1), void last.
        masks: logits (Q, H, W).
        things: indices of the thing classes.
        settings: of the merging.
        tasks: out of `TASKS`.
        labels: of "semantic" only the best class, "sem_seg_labels" (H, W), in place of all scores.

    Raises:
        ValueError: an unknown task, and as the merges.
    """
    if unknown := set(tasks) - set(TASKS):
        raise ValueError(f"no task {sorted(unknown)}: choose from {', '.join(TASKS)}")
    found: dict[str, Any] = {}
    if "panoptic" in tasks:
        thresholds = settings.object_threshold, settings.overlap_threshold
        found["panoptic_seg"] = merge_panoptic(probs, masks, things, *thresholds)
    if "instances" in tasks:
        found["instances"] = merge_instances(probs, masks, things, settings.top_k)
    if "semantic" in tasks and labels:
        found["sem_seg_labels"] = semantic_labels(probs, masks)
    elif "semantic" in tasks:
        found["sem_seg"] = merge_semantic(probs, masks)
    return found
