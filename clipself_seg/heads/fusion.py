"""Fuses the class scores of a mask generator and of CLIP into probabilities of classes and void.

The fusion is a weighted geometric mean of two softmaxes, computed in log space. CLIP's exponent is
alpha for seen classes and beta for unseen ones, the generator's is one minus that. Void ("no object")
comes from the generator, since no text describes it to CLIP; where CLIP is sure of a class, it may be
lowered (COAT of OVRCOAT, arXiv 2603.21386), see `discounted_void`. Masks that no generator scores are
named by CLIP alone, see `name_masks`.

Shapes: Q queries (masks), K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Outputs that can be made of fused probabilities.
TASKS = ("panoptic", "instances", "semantic")


class Fusion(NamedTuple):
    """One fusion of the scores of generator and CLIP, and the outputs that are made of it.

    Attributes:
        alpha: exponent of CLIP's scores of seen classes, in [0, 1].
        beta: exponent of CLIP's scores of unseen classes, in [0, 1].
        tasks: outputs to make, out of `TASKS`.
        void_discount: weight by which CLIP's best class lowers void, in [0, 1], see `discounted_void`.
    """

    alpha: float
    beta: float
    tasks: tuple[str, ...] = TASKS
    void_discount: float = 0.0


def fusion_of(
    mode: str, alpha: float, beta: float, tasks: tuple[str, ...] = TASKS, void_discount: float = 0.0
) -> Fusion:
    """The fusion of a mode: the exponents given, (1, 1) for "clip", (0, 0) for "generator".

    Args:
        mode: "fused", "clip" or "generator".
        alpha: CLIP's exponent for seen classes in the mode "fused".
        beta: CLIP's exponent for unseen classes in the mode "fused".
        tasks: outputs to make, out of `TASKS`.
        void_discount: weight by which CLIP lowers void, but for "generator", which does not ask CLIP.
    """
    exponents = {"fused": (alpha, beta), "clip": (1.0, 1.0), "generator": (0.0, 0.0)}
    return Fusion(*exponents[mode], tasks, 0.0 if mode == "generator" else void_discount)


def fuse_scores(
    generator_logits: Tensor,
    clip_logits: Tensor,
    void_prob: Tensor,
    seen: Tensor,
    alpha: float,
    beta: float,
    valid: Tensor | None = None,
    void_discount: float = 0.0,
) -> Tensor:
    """Fused probabilities (Q, K + 1) of each query's classes, void last; every row sums to 1.

    Both logits are normalised before they are mixed: exponents differ between classes, so the
    normalisers do not cancel, and raw logits would give other probabilities.

    Args:
        generator_logits: class logits (Q, K) of the generator without void, its temperature applied;
            infinite values are fine.
        clip_logits: class logits (Q, K) of CLIP, its temperature applied.
        void_prob: the generator's probability of void, (Q,) in [0, 1].
        seen: (K,) bool, True for the classes of the training vocabulary.
        alpha: CLIP's exponent for seen classes, in [0, 1].
        beta: CLIP's exponent for unseen classes, in [0, 1].
        valid: (Q,) bool, True where CLIP has an embedding of the mask; other queries keep the
            generator's scores, whatever their CLIP logits are. None: all are valid.
        void_discount: weight in [0, 1] by which CLIP's best class lowers void, see `discounted_void`;
            0 leaves void as it is.

    Returns:
        Probabilities in float32, or in float64 if the logits are float64.
    """
    queries, classes = generator_logits.shape
    assert clip_logits.shape == (queries, classes) and seen.shape == (classes,)
    assert void_prob.shape == (queries,) and (valid is None or valid.shape == (queries,))
    seen = seen.bool()
    if valid is not None:
        valid = valid.bool()
        # Pooling over nothing may give anything, even NaN.
        clip_logits = torch.where(valid[:, None], clip_logits, 0)
    generator_QK = _log_probabilities(generator_logits)
    clip_QK = _log_probabilities(clip_logits)
    # Tensors of the logits' type: torch.where rounds Python's numbers to float32.
    exponent_K = torch.where(seen, clip_QK.new_full((), alpha), clip_QK.new_full((), beta))
    exponent_QK = exponent_K.expand_as(clip_QK)
    if valid is not None:
        exponent_QK = exponent_QK * valid[:, None]
    mixed_QK = ((1 - exponent_QK) * generator_QK + exponent_QK * clip_QK).softmax(dim=1)
    void_Q = void_prob.to(mixed_QK)
    if void_discount:
        void_Q = discounted_void(void_Q, clip_QK.exp(), void_discount, valid)
    void_Q1 = void_Q[:, None]
    return torch.cat([mixed_QK * (1 - void_Q1), void_Q1], dim=1)


def discounted_void(
    void_prob: Tensor, clip_prob: Tensor, weight: float, valid: Tensor | None = None
) -> Tensor:
    """Void (Q,) that CLIP conditions, ``void * (1 - weight * max over classes of clip)``: COAT.

    The classes get what void loses, in the proportion that they had. Officially all queries are discounted,
    which is `valid` None; as with the classes, a query that CLIP cannot read may be left to the generator.

    Args:
        void_prob: the generator's probability of void, (Q,) in [0, 1].
        clip_prob: CLIP's own probabilities (Q, K) over the classes, before any fusion.
        weight: in [0, 1]; 0.5 in the released model, 0 leaves void as it is.
        valid: (Q,) bool, True where CLIP has an embedding of the mask; others keep their void. None: all.
    """
    surest_Q = clip_prob.amax(dim=1)
    if valid is not None:
        surest_Q = surest_Q * valid
    return void_prob * (1 - weight * surest_Q)


def name_masks(clip_logits: Tensor, scores: Tensor, valid: Tensor | None = None) -> Tensor:
    """Class probabilities (Q, K + 1) of masks that come without class scores: CLIP's, times each mask's score.

    Nobody says which masks are none of the classes: void is 0, and a row sums to its mask's score. A mask that
    CLIP cannot read has no class, its row is 0.

    Args:
        clip_logits: class logits (Q, K) of CLIP, its temperature applied.
        scores: quality of each mask, (Q,) in [0, 1]; it decides who gets a pixel of several masks.
        valid: (Q,) bool, True where CLIP has an embedding of the mask. None: all are valid.
    """
    if valid is not None:
        valid = valid.bool()
        clip_logits = torch.where(valid[:, None], clip_logits, 0)
    probs_QK = _log_probabilities(clip_logits).exp()
    weights_Q = scores.to(probs_QK) if valid is None else scores.to(probs_QK) * valid
    return F.pad(probs_QK * weights_Q[:, None], (0, 1))


def fuse_detections(
    detector_logits: Tensor, clip_logits: Tensor, seen: Tensor, alpha: float, beta: float
) -> Tensor:
    """Fused scores (n, K + 1) of boxes, ``detector^(1 - e) * clip^e``, background last (F-ViT).

    Both are softmax probabilities with the background; the exponent e is alpha for seen classes and the
    background, beta for the others. Rows do not sum to 1.

    Args:
        detector_logits: class logits (n, K + 1) of the detector, its temperature applied.
        clip_logits: class logits (n, K + 1) of CLIP, its temperature applied.
        seen: (K,) bool, True for the classes of the training vocabulary.
        alpha: CLIP's exponent for seen classes, in [0, 1].
        beta: CLIP's exponent for unseen classes, in [0, 1].
    """
    assert detector_logits.shape == clip_logits.shape == (len(clip_logits), seen.shape[0] + 1)
    detector_nK, clip_nK = _log_probabilities(detector_logits), _log_probabilities(clip_logits)
    columns = torch.cat([seen.bool(), seen.new_ones(1, dtype=torch.bool)])
    exponents = torch.where(columns, clip_nK.new_full((), alpha), clip_nK.new_full((), beta))
    return ((1 - exponents) * detector_nK + exponents * clip_nK).exp()


def _log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over classes in float32 or better, finite where the logits are not.

    An infinite log-probability would become NaN wherever its exponent is 0.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    limit = torch.finfo(dtype).max / 8
    return logits.to(dtype).clamp(-limit, limit).log_softmax(dim=1)
