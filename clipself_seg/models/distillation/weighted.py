"""Weighted sums of objectives on images and crops: CLIPSelf's, correlations of tokens, and preservation.

Each term is a function here, of a step's features and a pure function of `heads.distillation`, and a line in `TERMS`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from clipself_seg.clip import DenseCLIP
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.heads.distillation.correlation import (
    coherence_loss,
    context_loss,
    cosine_similarities,
    spatial_correlation_loss,
)
from clipself_seg.heads.distillation.losses import cosine_distance
from clipself_seg.models.distillation.correlation_teachers import CorrelationTeacher
from clipself_seg.models.distillation.step import DENSE, IMAGE, KEYS, QUERIES, Step

CONTEXTS = {"q": (QUERIES,), "qk": (QUERIES, KEYS)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrelationSettings:
    """How tokens are compared.

    Attributes:
        teacher: whose tokens show how places resemble each other; None where no term asks for it.
        temperature: of the softmaxes of `spatial_correlation_loss`.
        context: names of the student's features of which the context is the mean similarity.
    """

    teacher: CorrelationTeacher | None = None
    temperature: float = 0.2
    context: Sequence[str] = (QUERIES,)


class _View:
    """A step, and what several terms of it have in common, each computed when it is first asked for."""

    def __init__(self, step: Step, settings: CorrelationSettings) -> None:
        self.step = step
        self.settings = settings

    @functools.cached_property
    def target_BNE(self) -> Tensor:
        """Tokens of the teacher of correlations."""
        assert self.settings.teacher is not None, "a term of correlations needs a teacher"
        return _tokens(self.settings.teacher.features(self.step))

    @functools.cached_property
    def target_BNN(self) -> Tensor:
        """Their similarities."""
        return cosine_similarities(self.target_BNE)


def _tokens(maps_BDhw: Tensor) -> Tensor:
    return maps_BDhw.flatten(2).mT


def _crops(view: _View) -> Tensor:
    step = view.step
    return step.region_mean(cosine_distance(step.student_RE, step.teacher_RE))


def _context(view: _View) -> Tensor:
    step, names = view.step, view.settings.context
    similarities = [cosine_similarities(_tokens(step.maps[name])) for name in names]
    mean_BNN = sum(similarities[1:], similarities[0]) / len(similarities)
    return context_loss(mean_BNN, view.target_BNN, step.valid_BN).mean()


def _coherence(view: _View) -> Tensor:
    step = view.step
    own_BNN = cosine_similarities(_tokens(step.dense_BEhw))
    return coherence_loss(own_BNN, view.target_BNN, step.valid_BN).mean()


def _spatial(view: _View) -> Tensor:
    step, temperature = view.step, view.settings.temperature
    own_BNE = _tokens(step.dense_BEhw)
    return spatial_correlation_loss(own_BNE, view.target_BNE, temperature, step.valid_BN).mean()


def _whole_images(view: _View) -> Tensor:
    return cosine_distance(view.step.own_small_BE, view.step.teacher_small_BE).mean()


def _own_crops(view: _View) -> Tensor:
    step = view.step
    return step.region_mean(cosine_distance(step.own_crops_RE, step.teacher_RE))


class Term(NamedTuple):
    """One objective of a sum.

    Attributes:
        loss: name under which it is logged.
        reads: what it reads of the student; () stands for the features of the context.
        correlated: whether it needs a teacher of correlations.
        value: scalar of this process's samples, without its weight.
    """

    loss: str
    reads: tuple[str, ...]
    correlated: bool
    value: Callable[[_View], Tensor]


# Name of a key below MODEL.CLIPSELF.OBJECTIVES -> its term.
TERMS = {
    "CROPS": Term("loss_clipself", (DENSE,), False, _crops),
    "CONTEXT": Term("loss_context", (), True, _context),
    "COHERENCE": Term("loss_coherence", (DENSE,), True, _coherence),
    "SPATIAL": Term("loss_spatial", (DENSE,), True, _spatial),
    "WHOLE_IMAGES": Term("loss_whole_images", (IMAGE,), False, _whole_images),
    "OWN_CROPS": Term("loss_own_crops", (IMAGE,), False, _own_crops),
}


class WeightedTerms:
    """A sum of the terms of `TERMS` whose weight is not 0.

    Of samples it reads "image"; for the terms of crops "boxes" (n, 4) XYXY in [0, 1] of the padded square and "crops"
    uint8 (n, 3, S0, S0); and for correlations "whole" (1, 4), the box of the image, if there is padding.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        correlation: CorrelationSettings | None = None,
    ) -> None:
        """
        Args:
            weights: names of `TERMS` -> weights, 0 or more.
            correlation: how tokens are compared; None has no teacher of correlations.

        Raises:
            ValueError: no weight is greater than 0, or a term has no teacher of correlations.
        """
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.correlation = correlation = correlation or CorrelationSettings()
        if not self.weights:
            raise ValueError("no objective has a weight greater than 0")
        if correlation.teacher is None and any(TERMS[name].correlated for name in self.weights):
            raise ValueError(f"{', '.join(self.weights)} need a teacher of correlations")
        reads = [name for term in self.weights for name in TERMS[term].reads or correlation.context]
        self.reads = tuple(dict.fromkeys(reads))

    def setup_training(
        self, teacher: DenseCLIP, vocabulary: Vocabulary | Sequence[str] | None
    ) -> None:
        """Loads the teacher of correlations; it needs no classes."""
        if self.correlation.teacher is not None:
            self.correlation.teacher.setup(teacher.logit_scale.device)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The weighted terms, each under its own name."""
        view = _View(step, self.correlation)
        return {
            TERMS[name].loss: weight * TERMS[name].value(view)
            for name, weight in self.weights.items()
        }
