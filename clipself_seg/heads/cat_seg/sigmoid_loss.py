"""Binary cross-entropy of every class at every pixel, without one-hot targets.

Shapes: B images, T classes, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.errors import InputError


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
