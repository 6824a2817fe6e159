"""Region-text training: dense features of a region are pulled towards the text of its noun (CLIPSelf, Table 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from clipself_seg.clip import DenseCLIP, TextBank
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.heads.distillation.info_nce import info_nce_loss
from clipself_seg.heads.distillation.region_text import (
    concept_contrast,
    federated_bce,
    federated_nouns,
    noun_cross_entropy,
    noun_logits,
    teacher_divergence,
)
from clipself_seg.models.distillation.step import DENSE, Step

TextLoss = Literal["bce", "softmax", "regionclip"]


class RegionText:
    """Nouns of regions as classes, whose texts the frozen text tower embeds once.

    Of samples it reads "image", "boxes" (n, 4) XYXY in [0, 1] of the padded square and "labels" int64 (n,);
    "iteration" for the official loss; for RegionCLIP's "crops" uint8 (n, 3, S0, S0), "caption", and "whole"
    (1, 4), the box of the whole image.
    The temperature is the CLIP's own, exp(logit_scale), which does not train.
    """

    reads: tuple[str, ...] = (DENSE,)

    def __init__(
        self,
        *,
        loss: TextLoss = "bce",
        negatives: int = 100,
        templates: str = "vild63",
        seed: int = 0,
    ) -> None:
        """
        Args:
            loss: "bce", the official code's: sigmoids over the nouns of the process's regions, topped up at
                random to `negatives`; "softmax" over all nouns; "regionclip": RegionCLIP's three losses.
            negatives: number of nouns that "bce" compares with.
            templates: prompts around a noun, a name in `prompts.TEMPLATES`.
            seed: seed of the nouns that are drawn, together with the iteration.
        """
        self.loss = loss
        self.negatives = negatives
        self.templates = templates
        self.seed = seed
        self.nouns_KE: Tensor | None = None

    def setup_training(
        self, teacher: DenseCLIP, vocabulary: Vocabulary | Sequence[str] | None
    ) -> None:
        """Embeds the nouns; labels of samples number them in this order."""
        if vocabulary is None:
            raise ValueError("region-text training needs its nouns")
        self.nouns_KE = TextBank(teacher, self.templates).embed(vocabulary)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """{"loss_texts": scalar}, or RegionCLIP's {"loss_concepts", "loss_teacher", "loss_image_text"}."""
        assert self.nouns_KE is not None, "call setup_training before the first step"
        labels_R = torch.cat([sample["labels"] for sample in step.samples])
        on_device_R = labels_R.to(step.device, non_blocking=True)
        if self.loss == "regionclip":
            return self._regionclip(step, on_device_R)
        if self.loss == "softmax":
            each_R = noun_cross_entropy(self._logits(step, step.student_RE), on_device_R)
        else:
            # Before the student is asked, which a GPU would have to be done with.
            nouns_F = self._compared(labels_R, step).to(step.device, non_blocking=True)
            each_R = federated_bce(self._logits(step, step.student_RE), on_device_R, nouns_F)
        return {"loss_texts": step.region_mean(each_R)}

    def _compared(self, labels_R: Tensor, step: Step) -> Tensor:
        """Nouns (F,) that the regions of this process are compared with in this step."""
        assert self.nouns_KE is not None
        rng = np.random.default_rng((self.seed, step.samples[0]["iteration"]))
        count = len(self.nouns_KE)
        return torch.from_numpy(federated_nouns(labels_R.numpy(), count, self.negatives, rng))

    def _regionclip(self, step: Step, labels_R: Tensor) -> dict[str, Tensor]:
        logits_RK = self._logits(step, step.student_RE)
        teacher_RK = self._logits(step, step.teacher_RE)
        return {
            "loss_concepts": step.region_mean(concept_contrast(logits_RK, labels_R)),
            "loss_teacher": step.region_mean(teacher_divergence(logits_RK, teacher_RK)),
            "loss_image_text": self._image_text(step),
        }

    def _logits(self, step: Step, regions_RE: Tensor) -> Tensor:
        assert self.nouns_KE is not None
        return noun_logits(regions_RE, self.nouns_KE, step.teacher.logit_scale.exp())

    def _image_text(self, step: Step) -> Tensor:
        """Contrast of whole images, read as one region each, with their captions over all processes."""
        images_BE = step.pooled([sample["whole"] for sample in step.samples])
        scale = step.teacher.logit_scale.exp()
        return info_nce_loss(
            images_BE, step.caption_BE, step.caption_tokens_BL, scale, gather=step.synchronised
        )
