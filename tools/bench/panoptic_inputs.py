"""Synthetic inputs for benchmarks of panoptic segmentation, the same at every call.

Legend: Q queries, S texts, C width of the generator, E embedding of CLIP, h x w coarse cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

COARSE = (64, 88)  # of masks before they are made large
M = TypeVar("M")


class Scores(NamedTuple):
    """What fusion starts from: embeddings of queries and of texts, from generator and CLIP, and void."""

    query_QC: Tensor
    query_text_SC: Tensor
    region_QE: Tensor
    region_text_SE: Tensor
    void_Q: Tensor


def random_scores(queries: int, texts: int, width: int, clip_width: int) -> Scores:
    """Q, S, C and E in this order."""
    return Scores(
        noise(queries, width),
        noise(texts, width, seed=1),
        noise(queries, clip_width, seed=2),
        noise(texts, clip_width, seed=3),
        noise(queries).sigmoid(),
    )


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def areas(count: int, size: tuple[int, int]) -> Tensor:
    """Mask logits (count, *size) that divide the image: positive in what is nearest to a random
    place of one's own, and just beyond."""
    y_h, x_w = ((torch.arange(cells) + 0.5) / cells for cells in COARSE)
    places_2Q = torch.rand(2, count, generator=torch.Generator().manual_seed(0))
    rows_Qh1 = (places_2Q[0, :, None] - y_h)[:, :, None]
    columns_Q1w = (places_2Q[1, :, None] - x_w)[:, None]
    nearness_Qhw = -(rows_Qh1**2 + columns_Q1w**2)
    logits = 200 * (nearness_Qhw - nearness_Qhw.amax(dim=0)) + 0.5
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


def seeded(build: Callable[[], M]) -> M:
    """What `build` makes of the same random numbers, whenever that is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()
