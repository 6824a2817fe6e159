"""A loss of distillation: how alike two places are is as in the original CLIP, by their order alone."""

import torch

from clipself_seg.extend import register_objective


@register_objective("RANKS", reads=("dense",))
def ranks(step):
    """1 - the correlation of the student's similarities with those of the original; in [0, 2]."""
    student = similarities(step.dense_BEhw)
    with torch.no_grad():
        original = similarities(step.original_BEhw)
    return 1 - torch.nn.functional.cosine_similarity(student, original, dim=1).mean()


def similarities(maps):
    """Cosines of all pairs of places of each image, without their mean: (B, N * N)."""
    tokens = torch.nn.functional.normalize(maps.flatten(2), dim=1)  # (B, E, N)
    pairs = (tokens.mT @ tokens).flatten(1)
    return pairs - pairs.mean(dim=1, keepdim=True)
