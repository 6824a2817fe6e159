"""The CLIPSelf loss: a region's dense features shall point where its crop's embedding points.

Shapes: B images, R regions of all of them in image order, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Average = Literal["regions", "images"]


def cosine_distillation_loss(
    student_RE: Tensor,
    teacher_RE: Tensor,
    regions_per_image: Sequence[int],
    average: Average = "regions",
    count: float | Tensor | None = None,
) -> Tensor:
    """Mean of ``1 - cos(student, teacher)``, a scalar in [0, 2] (CLIPSelf, equation 1).

    Computed in float32, whatever the inputs are.

    Args:
        student_RE: pooled dense features, any length.
        teacher_RE: image embeddings of the regions' crops, any length; gets no gradient.
        regions_per_image: B numbers that sum to R.
        average: "regions" gives every region the same weight (official code), "images" every
            image (paper; D3).
        count: what the sum is divided by; `loss_count` of this batch if None. Under data
            parallelism its mean over the processes: then the mean of their losses, and of their
            gradients, is that of one process on the whole batch, however the regions are spread.
    """
    distance_R = 1 - F.cosine_similarity(
        student_RE.float(), teacher_RE.detach().float(), dim=-1, eps=1e-12
    )
    if average == "images":
        sizes_B = torch.tensor(regions_per_image, device=distance_R.device)
        distance_R = distance_R / sizes_B.repeat_interleave(sizes_B)
    if count is None:
        count = max(loss_count(regions_per_image, average), 1)
    return distance_R.sum() / count


def loss_count(regions_per_image: Sequence[int], average: Average) -> int:
    """What the loss of a batch averages over: the number of regions, or of images that have any."""
    if average == "regions":
        return sum(regions_per_image)
    return sum(size > 0 for size in regions_per_image)
