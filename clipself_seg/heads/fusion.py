"""Scores of a mask generator x scores of CLIP -> probabilities of classes and void.

A weighted geometric mean of two softmaxes, in log space: class by class, CLIP's exponent is alpha
for a class that training showed and beta for another, and the generator has the rest. Void ("no
object") is the generator's alone, since CLIP has no words for it.

Shapes: Q queries (masks), K classes.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from clipself_seg.errors import InputError, nearest

# Whose scores count: both, CLIP's alone, or the generator's alone.
FusionMode = Literal["fused", "clip", "generator"]


def fusion_exponents(mode: str, alpha: float, beta: float) -> tuple[float, float]:
    """Alpha and beta of a mode: as they are, (1, 1) for "clip" and (0, 0) for "generator".

    Raises:
        InputError: an unknown mode.
    """
    exponents = {"fused": (alpha, beta), "clip": (1.0, 1.0), "generator": (0.0, 0.0)}
    if mode not in exponents:
        raise InputError(f'no fusion mode "{mode}": {nearest(mode, get_args(FusionMode))}')
    return exponents[mode]


def fuse_scores(
    generator_logits: Tensor,
    clip_logits: Tensor,
    void_prob: Tensor,
    seen: Tensor,
    alpha: float,
    beta: float,
    valid: Tensor | None = None,
) -> Tensor:
    """Probabilities (Q, K + 1), void last; every row sums to 1.

    Each of the two is normalised before they are mixed: exponents differ between classes, so the
    normalisers do not cancel, and raw logits would mix into something else.

    Args:
        generator_logits: (Q, K) without void, its temperature applied. Infinite ones are fine.
        clip_logits: (Q, K), its temperature applied.
        void_prob: (Q,) in [0, 1].
        seen: (K,) bool, classes of the training vocabulary.
        alpha: CLIP's exponent for seen classes, in [0, 1].
        beta: CLIP's exponent for the others, in [0, 1].
        valid: (Q,) bool, whether CLIP could read the mask; a query that it could not read keeps
            the generator's scores, whatever its CLIP logits are. None: all are valid.

    Returns:
        float32, or float64 if the logits are.

    Raises:
        InputError: alpha or beta outside of [0, 1].
        ValueError: shapes that do not fit.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} is an exponent between 0 and 1, got {value}")
    _check_shapes(generator_logits, clip_logits, void_prob, seen, valid)
    seen = seen.bool()
    if valid is not None:
        valid = valid.bool()
        # Pooling over nothing may give anything, even NaN.
        clip_logits = torch.where(valid[:, None], clip_logits, 0)
    generator_QK, clip_QK = _log_probabilities(generator_logits), _log_probabilities(clip_logits)
    # Python's numbers alone would be rounded to float32.
    exponent_K = torch.where(
        seen, clip_QK.new_tensor(float(alpha)), clip_QK.new_tensor(float(beta))
    )
    exponent_QK = exponent_K.expand_as(clip_QK)
    if valid is not None:
        exponent_QK = exponent_QK * valid[:, None]
    mixed_QK = ((1 - exponent_QK) * generator_QK + exponent_QK * clip_QK).softmax(dim=1)
    void_Q1 = void_prob.to(mixed_QK)[:, None]
    return torch.cat([mixed_QK * (1 - void_Q1), void_Q1], dim=1)


def _log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over classes in float32 or better, finite where the logits are not.

    An infinite log-probability would become NaN wherever its exponent is 0.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    limit = torch.finfo(dtype).max / 8
    return logits.to(dtype).clamp(-limit, limit).log_softmax(dim=1)


def _check_shapes(
    generator_logits: Tensor,
    clip_logits: Tensor,
    void_prob: Tensor,
    seen: Tensor,
    valid: Tensor | None,
) -> None:
    queries, classes = generator_logits.shape
    given = [tuple(part.shape) for part in (clip_logits, void_prob, seen)]
    given.append((queries,) if valid is None else tuple(valid.shape))
    if given != [(queries, classes), (queries,), (classes,), (queries,)]:
        raise ValueError(
            f"generator logits of {queries} queries x {classes} classes do not fit CLIP logits "
            f"{given[0]}, void {given[1]}, seen {given[2]} and valid {given[3]}"
        )
