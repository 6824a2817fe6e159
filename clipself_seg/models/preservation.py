"""Preservation in fine-tuning: what a model says of other things than its classes stays what it said at the start.

A frozen copy of the model as the training found it (MODEL.WEIGHTS) sees the same images. No labels are needed: CAT-Seg
keeps the scores of further words, F-ViT the objects that it proposes and their embeddings, which name any class.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.data.vocabulary import Names, Words, class_names, read_given

AnyModel = TypeVar("AnyModel", bound=nn.Module)


def frozen_copy(model: AnyModel) -> tuple[AnyModel]:
    """A frozen copy of a model, in a tuple, so that it becomes no part of the model that keeps it."""
    return (copy.deepcopy(model).requires_grad_(False),)


def other_words(words: Words, own: Names) -> Names:
    """The first names of some classes, without those that share a name with a model's own.

    Args:
        words: as `read_given` takes them.
        own: names of each class of the model.
    """
    known = {name.casefold() for names in own for name in names}
    names = class_names(read_given(words), all_synonyms=False)
    return tuple(n for n in names if not known & {name.casefold() for name in n})


def draw_words(words: Names, count: int) -> Names:
    """Some of the words, other ones in every step of a training; the draw follows from torch's seed."""
    order = torch.randperm(len(words))[:count].tolist()
    return tuple(words[index] for index in order)


def score_divergence(logits: Tensor, kept: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the probabilities sigmoid(logits) from those of the start, of each, 0 or more.

    Args:
        logits: of any shape.
        kept: those of the start, of the same shape; they get no gradient.
    """
    kept = kept.detach().float()
    probability = kept.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(kept, probability, reduction="none")
    return (
        F.binary_cross_entropy_with_logits(logits.float(), probability, reduction="none") - entropy
    )
