"""The losses of a panoptic model: those of its mask generator, and the caption model's grounding loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipself_seg.clip.precision import autocast
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.grounding_loss import caption_lengths, grounding_loss
from clipself_seg.heads.panoptic.mask_generator import MaskGenerator
from clipself_seg.heads.panoptic.mask_generator.query_decoder import QueryPrediction
from clipself_seg.heads.panoptic.mask_losses import MaskTargets
from clipself_seg.models.inputs import on_device

if TYPE_CHECKING:
    from clipself_seg.models.panoptic.model import OpenPanoptic


def panoptic_losses(model: OpenPanoptic, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Losses of every decoder layer by name: `MaskCriterion.losses`, and the caption model's grounding loss.

    Args:
        model: an `OpenPanoptic` with the training vocabulary.
        samples: see `OpenPanoptic.forward`.

    Raises:
        InputError: there is no generator that could learn.
    """
    backbone, generator, criterion = model.backbone, model.generator, model.criterion
    if backbone is None or generator is None or criterion is None:
        raise InputError("generator outputs from disk do not train: add --eval-only")
    images = torch.stack(on_device(samples, "image", model.device))
    labels, masks = (on_device(samples, key, model.device) for key in ("labels", "masks"))
    targets = [MaskTargets(*pair) for pair in zip(labels, masks)]
    with autocast(model.device, model.precision):
        features = backbone(images.float() / 255)
        predictions = generator(features, every_layer=True)
        logits = _void_logits(model, generator, predictions)
        pairs = [(one, p.mask_logits) for one, p in zip(logits, predictions)]
        losses = criterion.losses(pairs, targets)
        if model.grounding_weight:
            losses |= _grounding(model, generator, predictions, samples)
    return losses


def _void_logits(
    model: OpenPanoptic, generator: MaskGenerator, predictions: Sequence[QueryPrediction]
) -> list[Tensor]:
    """Of each layer `GeneratorScores.void_logits`, for which the caption model needs no class logits."""
    own = [p.object_logits for p in predictions if p.object_logits is not None]
    if own:
        return own
    texts = model.generator_texts()
    return [generator.scores(p, texts, model.synonyms).void_logits for p in predictions]


def _grounding(
    model: OpenPanoptic,
    generator: MaskGenerator,
    predictions: Sequence[Any],
    samples: Sequence[Sample],
) -> dict[str, Tensor]:
    lengths = caption_lengths([sample["words"] for sample in samples], model.device)
    valid, count = lengths > 0, max(1, int(lengths.max()))
    # A caption without noun phrases has padded words, and is a negative for the others (`valid`).
    phrases = [phrase for s in samples for phrase in (s["words"] or [""] * count)]
    texts = generator.text_head(model.generator_bank.embed_raw(phrases, keep=False))
    texts = texts.unflatten(0, (len(samples), -1))
    scale = generator.sem_seg_head.predictor.scale
    losses = [grounding_loss(p.embeddings, texts, valid, scale) for p in predictions]
    suffixes = [*(f"_{i}" for i in range(len(losses) - 1)), ""]
    return {
        f"loss_grounding{suffix}": model.grounding_weight * loss
        for suffix, loss in zip(suffixes, losses)
    }
