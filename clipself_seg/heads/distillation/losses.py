"""The CLIPSelf loss: the mean cosine distance between regions' dense features and embeddings of their crops.

Shapes: B images, R regions of all images in image order, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Average = Literal["regions", "images"]


def cosine_distance(student_RE: Tensor, teacher_RE: Tensor) -> Tensor:
    """``1 - cos(student, teacher)`` of each region, (R,) in [0, 2] (CLIPSelf, equation 1).

    It is computed in float32, whatever the type of the inputs.

    Args:
        student_RE: pooled dense features of the regions, of any norm.
        teacher_RE: image embeddings of the regions' crops, of any norm; they get no gradient.
    """
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
        regions_per_image: number of regions of each of the B images; they sum to R.
        average: "regions" gives every region the same weight (official code), "images" gives every
            image the same weight (paper; D3).
        count: divisor of the summed values; None means `loss_count` of this batch. Under data
            parallelism give the mean of `loss_count` over the processes: then the mean of their losses
            and gradients equals that of one process on the whole batch, however regions are spread.
    """
    if average == "images":
        sizes_B = torch.tensor(regions_per_image)
        sizes_R = sizes_B.repeat_interleave(sizes_B)
        values_R = values_R / sizes_R.to(values_R.device, non_blocking=True)
    if count is None:
        count = max(loss_count(regions_per_image, average), 1)
    return values_R.sum() / count


def loss_count(regions_per_image: Sequence[int], average: Average) -> int:
    """Divisor of a batch's loss: its number of regions, or of images that have any region.

    Args:
        regions_per_image: number of regions of each image.
        average: "regions" or "images", as in `region_mean`.
    """
    if average == "regions":
        return sum(regions_per_image)
    return sum(size > 0 for size in regions_per_image)
