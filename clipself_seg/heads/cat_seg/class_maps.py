"""Turns logits into class probabilities of an image, some classes at a time.

Full maps of all classes take most of the memory, so probabilities come in parts: class indices (k,),
ascending, and their maps (k, H, W). The caller keeps what it needs: the best class, or all scores.

Shapes: T classes, k of them, s x s logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from clipself_seg.clip.runtime import chunk_size
from clipself_seg.heads.cat_seg.cost_aggregator import LEFT_OUT, ClassLogits
from clipself_seg.heads.cat_seg.windows import WindowLayout, resize

AT_ONCE = 4  # classes whose maps are made together on a CPU, in whose cache they stay
Part = tuple[Tensor, Tensor]


def plain_probabilities(
    whole: ClassLogits, count: int, image_size: tuple[int, int], size: tuple[int, int]
) -> Iterator[Part]:
    """Probabilities at the size of the logits, cut to that of the image where it is smaller.

    (Detectron2's `sem_seg_postprocess` cuts in the same place, also where the logits are smaller than
    the padded input, as CAT-Seg's are.)

    Args:
        whole: logits of the whole padded image.
        count: T.
        image_size: rows and columns of the image without padding.
        size: rows and columns that the caller resizes the maps to, on which their number in memory depends.
    """
    classes = _indices(whole, count)
    together = chunk_size(
        classes.device, AT_ONCE, 4 * max(whole.logits[0].numel(), math.prod(size))
    )
    rows, columns = image_size
    for part, logits in zip(classes.split(together), whole.logits.split(together)):
        yield part, logits[:, :rows, :columns].float().sigmoid()


def sliding_probabilities(
    views: Sequence[ClassLogits], count: int, layout: WindowLayout, size: tuple[int, int]
) -> Iterator[Part]:
    """Probabilities on the canvas of the windows.

    A class that a view leaves out has probability 0 there. A class that all views leave out is in no
    part.

    Args:
        views: logits of each of `WindowLayout.views`.
        count: T.
        layout: positions of the windows.
        size: rows and columns that the caller resizes the maps to, on which their number in memory depends.
    """
    if any(view.classes is None for view in views):
        kept = torch.arange(count, device=views[0].logits.device)
    else:
        # A GPU is waited for here, which costs less than the maps of classes that no view keeps.
        kept = torch.cat([_indices(view, count) for view in views]).unique()
    numbers = 2 * (len(views) * layout.size**2 + layout.canvas**2 + math.prod(size))
    for part in kept.split(chunk_size(kept.device, AT_ONCE, numbers)):
        logits = torch.stack([_of_classes(view, part) for view in views])
        yield part, layout.merge(logits.float())


def best_class(parts: Iterable[Part], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Index (H, W) int64 of the class with the highest probability, and that probability (H, W).

    Of equally probable classes the first one wins. NaN counts as the highest probability, so that it
    shows.

    Args:
        parts: class indices and maps, of at least one class.
        size: (H, W) that the maps are resized to.
    """
    best = labels = None
    for classes, maps in parts:
        value, index = resize(maps[None], size)[0].max(dim=0)
        if best is None or labels is None:
            # A class that is in no part has probability 0, and class 0 is the first of those.
            best = torch.zeros_like(value)
            labels = torch.zeros_like(index)
        better = (value > best) | value.isnan()
        best = torch.maximum(best, value)
        labels = torch.where(better, classes[index], labels)
    assert best is not None and labels is not None
    return labels, best


def all_scores(parts: Iterable[Part], size: tuple[int, int], count: int) -> Tensor:
    """Probabilities (T, H, W), 0 for the classes that are in no part.

    Args:
        parts: class indices and maps, of at least one class.
        size: (H, W) that the maps are resized to.
        count: T.
    """
    scores = None
    for classes, maps in parts:
        if scores is None:
            scores = maps.new_zeros(count, *size)
        scores[classes] = resize(maps[None], size)[0]
    assert scores is not None
    return scores


def _indices(view: ClassLogits, count: int) -> Tensor:
    if view.classes is None:
        return torch.arange(count, device=view.logits.device)
    return view.classes


def _of_classes(view: ClassLogits, wanted: Tensor) -> Tensor:
    """Logits (k, s, s) of some classes; `LEFT_OUT`, whose sigmoid is 0, for those that are not kept."""
    if view.classes is None:
        return view.logits[wanted]
    # Both are ascending. A class that is not kept gets some other class's position, and is masked.
    position = torch.searchsorted(view.classes, wanted).clamp(max=len(view.classes) - 1)
    kept = view.classes[position] == wanted
    return torch.where(kept[:, None, None], view.logits[position], LEFT_OUT)
