"""Preservation in fine-tuning: outputs for classes that are not trained are held at those of the start.

A frozen copy of the model with the weights of the start (MODEL.WEIGHTS) is given the same images, and a loss compares
the outputs of both. No labels are needed. CAT-Seg compares scores of words that are not trained, F-ViT compares the
objectness of places, embeddings of proposals, and dense features of CLIP.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.data.vocabulary import Names, Vocabulary
from clipself_seg.errors import InputError

AnyModel = TypeVar("AnyModel", bound=nn.Module)


def frozen_copy(model: AnyModel) -> tuple[AnyModel]:
    """A frozen copy of a model for inference, in a tuple, so that it becomes no part of the model that keeps it."""
    return (copy.deepcopy(model).eval().requires_grad_(False),)


def other_words(words: str, trained: Vocabulary | Sequence[str]) -> Names:
    """The first names of some classes, without those that share a name with a class that is trained.

    Args:
        words: ``MODEL.PRESERVATION.WORDS``, as `Vocabulary.of` takes them.
        trained: the training vocabulary, whose names are compared as in `Vocabulary.seen_in`.

    Raises:
        InputError: as `Vocabulary.of`, or none is left.
    """
    given = Vocabulary.of(words)
    seen = given.seen_in(Vocabulary.of(trained, repeats=True))
    others = tuple(itertools.compress(given.names(all_synonyms=False), ~seen))
    if not others:
        raise InputError(
            f"MODEL.PRESERVATION.WORDS {words} has no word besides the classes that are trained, so that nothing "
            "would be preserved: name what is to stay"
        )
    return others


def draw_words(words: Names, count: int) -> Names:
    """Draws `count` of the words with torch's random generator, at most all of them."""
    order = torch.randperm(len(words))[:count].tolist()
    return tuple(words[index] for index in order)


def score_divergence(logits: Tensor, kept: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each probability sigmoid(logits) from that of the start, 0 or more.

    Args:
        logits: logits of any shape.
        kept: logits of the start, of the same shape; they get no gradient.

    Returns:
        A divergence for each logit, float32.
    """
    kept = kept.detach().float()
    probability = kept.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(kept, probability, reduction="none")
    return (
        F.binary_cross_entropy_with_logits(logits.float(), probability, reduction="none") - entropy
    )
