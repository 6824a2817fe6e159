"""What CAT-Seg's logits become: probabilities of an image, some classes at a time, or a loss.

Shapes: B images, T classes, k of them, s x s logits of a view, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.runtime import chunk_size
from clipself_seg.errors import InputError
from clipself_seg.heads.cat_seg.cost_aggregator import LEFT_OUT, ClassLogits
from clipself_seg.heads.windows import AT_ONCE, Part, WindowLayout


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


def check_labels(labels: Tensor, num_classes: int, ignore_label: int) -> None:
    """Refuses labels that the loss cannot use; on a GPU they would end the process.

    Args:
        labels: integers of any shape.
        num_classes: T.
        ignore_label: label of pixels without a class.

    Raises:
        InputError: a label is neither in [0, T) nor `ignore_label`.
    """
    if labels.is_meta:  # counting operations needs shapes alone, and there are no values to check
        return
    wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_label)]
    if len(wrong):
        raise InputError(
            f"label {int(wrong[0])} is outside of the vocabulary of {num_classes} classes (0 to "
            f"{num_classes - 1}; {ignore_label} is ignored): give the data set's class names to "
            "set_vocabulary, or its label as MODEL.SEM_SEG_HEAD.IGNORE_VALUE"
        )


def sigmoid_loss(
    logits_BTHW: Tensor,
    labels_BHW: Tensor,
    ignore_label: int,
    mask_ignored: bool = False,
) -> Tensor:
    """Binary cross-entropy, the mean over images, pixels and classes, a scalar.

    ``-log sigmoid(x)`` of the labelled class and ``-log sigmoid(-x)`` of the others add up to
    ``sum softplus(x) - x[label]``.

    Args:
        logits_BTHW: logits, before the sigmoid.
        labels_BHW: integers in [0, T), or `ignore_label`.
        ignore_label: label of pixels without a class, which are negative examples of all classes, as
            in CAT-Seg.
        mask_ignored: leave such pixels out of the mean instead.
    """
    labels = labels_BHW.long()
    valid = labels != ignore_label
    # Ignored pixels gather the logit of class 0, which is then replaced by 0.
    own_BHW = logits_BTHW.gather(1, labels.where(valid, 0)[:, None])[:, 0].float()
    own = torch.where(valid, own_BHW, 0).sum()
    costs = F.softplus(logits_BTHW.float())
    if not mask_ignored:
        return (costs.sum() - own) / logits_BTHW.numel()
    kept = (costs.sum(dim=1) * valid).sum() - own
    return kept / (valid.sum().clamp(min=1) * logits_BTHW.shape[1])
