"""The CLIPSelf loss: the cosine distance between a region's dense features and its crop's embedding.

Shapes: B images, R regions of all images in image order, E embedding width.
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

    It is computed in float32, whatever the type of the inputs.

    Args:
        student_RE: pooled dense features of the regions, of any norm.
        teacher_RE: image embeddings of the regions' crops, of any norm; they get no gradient.
        regions_per_image: number of regions of each of the B images; they sum to R.
        average: "regions" gives every region the same weight (official code), "images" gives every
            image the same weight (paper; D3).
        count: divisor of the summed distances; None means `loss_count` of this batch. Under data
            parallelism give the mean of `loss_count` over the processes: then the mean of their losses
            and gradients equals that of one process on the whole batch, however regions are spread.
    """
    distance_R = cosine_distance(student_RE, teacher_RE)
    return region_mean(distance_R, regions_per_image, average, count)


def cosine_distance(student_RE: Tensor, teacher_RE: Tensor) -> Tensor:
    """``1 - cos(student, teacher)`` of each region, (R,) in [0, 2], in float32; the teacher gets no gradient."""
    return 1 - F.cosine_similarity(
        student_RE.float(), teacher_RE.detach().float(), dim=-1, eps=1e-12
    )


def region_mean(
    values_R: Tensor,
    regions_per_image: Sequence[int],
    average: Average = "regions",
    count: float | Tensor | None = None,
) -> Tensor:
    """Mean of a value of each region; 0 if there is no region.

    Args:
        values_R: one value a region.
        regions_per_image: as in `cosine_distillation_loss`, and so are the others.
        average: "regions" or "images".
        count: divisor of the sum.
    """
    if average == "images":
        sizes_B = torch.tensor(regions_per_image, device=values_R.device)
        values_R = values_R / sizes_B.repeat_interleave(sizes_B)
    if count is None:
        count = max(loss_count(regions_per_image, average), 1)
    return values_R.sum() / count


def loss_count(regions_per_image: Sequence[int], average: Average) -> int:
    """Divisor of a batch's loss: its number of regions, or of images that have any region.

    Args:
        regions_per_image: number of regions of each image.
        average: "regions" or "images", as in `cosine_distillation_loss`.
    """
    if average == "regions":
        return sum(regions_per_image)
    return sum(size > 0 for size in regions_per_image)
