"""Nouns that a CLIP gives to proposals, and how many boxes around an object of the ground truth get its name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

LEAST_IOU = 0.5


class Agreement(NamedTuple):
    """Numbers of boxes.

    Attributes:
        boxes: proposals around an object: its IoU with the box is `LEAST_IOU` at least.
        right: those of them that are labelled with the name of the object.
        kept: those of them that are kept.
        kept_right: both.
    """

    boxes: int = 0
    right: int = 0
    kept: int = 0
    kept_right: int = 0

    def __str__(self) -> str:
        """One line for the terminal."""
        right = f"{_percent(self.right, self.boxes)} have its name"
        kept = f"of the {self.kept} that are kept {_percent(self.kept_right, self.kept)}"
        return f"{self.boxes} boxes around an object (IoU >= {LEAST_IOU}): {right}, {kept}"


class LabelledBoxes(NamedTuple):
    """Proposals and objects of one image.

    Attributes:
        boxes: (n, 4) XYXY, the proposals.
        names: of each proposal; "" for none.
        kept: (n,) bool.
        objects: (m, 4) XYXY.
        object_names: of each object.
    """

    boxes: np.ndarray
    names: list[str]
    kept: np.ndarray
    objects: np.ndarray
    object_names: list[str]


def agreement(images: Iterable[LabelledBoxes]) -> Agreement:
    """Count the proposals whose noun is the name of the object that they overlap most, whatever the case."""
    total = np.zeros(4, dtype=np.int64)
    for image in images:
        if not len(image.boxes) or not len(image.objects):
            continue
        overlaps = box_iou(torch.from_numpy(image.boxes), torch.from_numpy(image.objects))
        most, best = (part.numpy() for part in overlaps.max(1))
        names = np.array([image.object_names[index].lower() for index in best])
        around = most >= LEAST_IOU
        right = around & (names == np.array([name.lower() for name in image.names]))
        kept = around & image.kept
        total += [around.sum(), right.sum(), kept.sum(), (right & kept).sum()]
    return Agreement(*total.tolist())


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def pseudo_labels(logits_RK: Tensor, candidates_RK: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nouns that the teacher gives to regions: labels (R,) int64 and their scores (R,).

    A label is the candidate with the largest logit, the first of equals; -1 where there is none. Its score
    is its probability among all nouns, in [0, 1]; 0 where there is none.

    Args:
        logits_RK: see `noun_logits`, of embeddings of the regions' crops.
        candidates_RK: bool, the nouns that a region may have; None for all.
    """
    chances_RK = logits_RK.softmax(1)
    if candidates_RK is None:
        candidates_RK = torch.ones_like(logits_RK, dtype=torch.bool)
    allowed_RK = logits_RK.masked_fill(~candidates_RK, -torch.inf)
    best_RK = candidates_RK & (allowed_RK == allowed_RK.amax(1, keepdim=True))
    number = torch.arange(logits_RK.shape[1], device=logits_RK.device)
    first_R = number.where(best_RK, len(number)).amin(1)
    none_R = first_R == len(number)
    labels_R = first_R.masked_fill(none_R, 0)
    scores_R = chances_RK.gather(1, labels_R[:, None])[:, 0].masked_fill(none_R, 0)
    return labels_R.masked_fill(none_R, -1), scores_R
