"""The plain formulation of panoptic outputs: all masks at once, and a loop over the queries.

Shapes: Q queries, K classes, H W rows and columns of the output.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor


def plain_panoptic(
    probs: Tensor,
    mask_logits: Tensor,
    thing_ids: Collection[int],
    object_threshold: float = 0.0,
    overlap_threshold: float = 0.8,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """What `merge_panoptic` gives, step by step.

    Args:
        probs: (Q, K + 1), void last.
        mask_logits: (Q, H, W).
        thing_ids: indices of the thing classes.
        object_threshold: in [0, 1].
        overlap_threshold: in [0, 1].
    """
    scores, labels = probs.max(dim=1)
    kept = (labels != probs.shape[1] - 1) & (scores > object_threshold)
    ids = torch.zeros(mask_logits.shape[1:], dtype=torch.int64, device=mask_logits.device)
    segments: list[dict[str, Any]] = []
    if not kept.any():
        return ids, segments
    masks = mask_logits[kept].sigmoid()
    winner = (scores[kept][:, None, None] * masks).argmax(dim=0)
    stuff: dict[int, int] = {}
    for query, label in enumerate(labels[kept].tolist()):
        won = (winner == query).sum().item()
        half = (masks[query] >= 0.5).sum().item()
        mask = (winner == query) & (masks[query] >= 0.5)
        if won == 0 or half == 0 or not mask.any() or won / half < overlap_threshold:
            continue
        if label in stuff:
            ids[mask] = stuff[label]
            continue
        isthing = label in thing_ids
        segments.append({"id": len(segments) + 1, "isthing": isthing, "category_id": label})
        ids[mask] = len(segments)
        if not isthing:
            stuff[label] = len(segments)
    return ids, segments
