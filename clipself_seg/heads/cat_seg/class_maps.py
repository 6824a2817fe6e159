"""From logits to a picture's class probabilities, some classes at a time.

A full map of every class is what takes memory, so probabilities come in parts: class indices (k,)
ascending, and maps (k, H, W). A consumer keeps what it needs: the best class, or all scores.

Shapes: T classes, k of them, s x s logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from clipself_seg.heads.cat_seg.cost_aggregator import LEFT_OUT, ClassLogits
from clipself_seg.heads.cat_seg.windows import WindowLayout, resize

# Classes whose maps are made together: what stays in a CPU's cache, what fills a GPU.
AT_ONCE = {"cpu": 4, "cuda": 32}
Part = tuple[Tensor, Tensor]


def plain_probabilities(
    found: ClassLogits, count: int, image_size: tuple[int, int]
) -> Iterator[Part]:
    """Probabilities at the size of the logits, cut to the picture's where it is smaller (Detectron2's way).

    Args:
        found: logits of the whole picture.
        count: T.
        image_size: rows and columns of the picture.
    """
    classes = _indices(found, count)
    at_once, (rows, columns) = _at_once(classes), image_size
    for part, logits in zip(classes.split(at_once), found.logits.split(at_once)):
        yield part, logits[:, :rows, :columns].float().sigmoid()


def sliding_probabilities(
    views: Sequence[ClassLogits], count: int, layout: WindowLayout
) -> Iterator[Part]:
    """Probabilities on the canvas.

    A class that a view leaves out is 0 there; one that all leave out is 0 and does not come.

    Args:
        views: logits of `WindowLayout.views`.
        count: T.
        layout: of the windows.
    """
    kept = torch.cat([_indices(view, count) for view in views]).unique()
    for part in kept.split(_at_once(kept)):
        logits = torch.stack([_of_classes(view, part) for view in views])
        yield part, layout.merge(logits.float())


def best_class(parts: Iterable[Part], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Index (H, W) int64 of the highest probability, of equal ones the lowest, and it (H, W).

    A probability that is not a number is the highest.

    Args:
        parts: of at least one class.
        size: (H, W) that the maps are resized to.
    """
    best = labels = None
    for classes, maps in parts:
        value, index = resize(maps[None], size)[0].max(dim=0)
        if best is None or labels is None:
            # A class that did not come has probability 0, and class 0 is the first of those.
            best, labels = torch.zeros_like(value), torch.zeros_like(index)
        better = (value > best) | value.isnan()
        best = torch.maximum(best, value)
        labels = torch.where(better, classes[index], labels)
    assert best is not None and labels is not None
    return labels, best


def all_scores(parts: Iterable[Part], size: tuple[int, int], count: int) -> Tensor:
    """Probabilities (T, H, W), 0 for the classes that did not come."""
    scores = None
    for classes, maps in parts:
        if scores is None:
            scores = maps.new_zeros(count, *size)
        scores[classes] = resize(maps[None], size)[0]
    assert scores is not None
    return scores


def _at_once(classes: Tensor) -> int:
    return AT_ONCE.get(classes.device.type, max(AT_ONCE.values()))


def _indices(found: ClassLogits, count: int) -> Tensor:
    if found.classes is None:
        return torch.arange(count, device=found.logits.device)
    return found.classes


def _of_classes(view: ClassLogits, wanted: Tensor) -> Tensor:
    """Logits (k, s, s) of some classes; `LEFT_OUT`, which is 0 as a probability, where not kept."""
    if view.classes is None:
        return view.logits[wanted]
    position = torch.searchsorted(view.classes, wanted).clamp(max=len(view.classes) - 1)
    there = view.classes[position] == wanted
    return torch.where(there[:, None, None], view.logits[position], LEFT_OUT)
