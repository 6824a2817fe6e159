"""Two numbers of every evaluation of pixels: one of the means, one of the confusion matrix."""

import numpy as np

from clipself_seg.extend import register_metric


@register_metric("hIoU")
def harmonic(numbers, confusion):
    """Harmonic mean of the mean IoU of seen and of unseen classes, in percent."""
    pair = [numbers.get("mIoU-seen"), numbers.get("mIoU-unseen")]
    return 2 / sum(1 / max(value, 1e-9) for value in pair) if all(pair) else None


@register_metric("median-IoU")
def median(numbers, confusion):
    """Median of the IoU of the classes that have pixels, in percent."""
    if confusion is None:  # regions, boxes, segments
        return None
    hits = confusion.diagonal()
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return 100 * np.median((hits / (truth + predicted - hits).clip(1))[truth > 0])
