"""Describes in words how a panoptic model processes class names and images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipself_seg.clip import TextBank
from clipself_seg.clip.precision import autocast
from clipself_seg.clip.prompts import templates_text
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Names
from clipself_seg.heads.panoptic.clip_branches import (
    BackbonePooling,
    ClipBranch,
    MaskedAttention,
)
from clipself_seg.heads.panoptic.mask_generator import MaskGenerator
from clipself_seg.heads.panoptic.mask_generator.outputs import GeneratorOutput
from clipself_seg.models.inputs import on_device
from clipself_seg.models.panoptic.outputs import FusionSettings, MergeSettings, UnnamedMasks
from clipself_seg.models.protocol import BEST_OF_NAMES, Classes, Reading, features_text


class PanopticReading:
    """Mixin that describes models with a CLIP branch and text banks for it and for the generator."""

    branch: ClipBranch
    branch_bank: TextBank
    classes: Classes
    generator: MaskGenerator | None
    generator_bank: TextBank
    masks_given: bool
    fusion: FusionSettings
    settings: MergeSettings
    device: Any
    test_precision: torch.dtype | None

    @property
    def names(self) -> Names:
        """For each class all its names."""
        return self.classes.names

    @property
    def synonyms(self) -> list[int]:
        """Number of texts of each class."""
        return [len(names) for names in self.names]

    def generator_texts(self) -> Tensor:
        """Embeddings (S, E) of all names of all classes, not normalised, but of unit length for FC-CLIP."""
        if self.generator is not None and self.generator.variant == "fcclip":
            return self.generator_bank.embed([(name,) for names in self.names for name in names])
        return self.generator_bank.embed_raw([name for names in self.names for name in names])

    def branch_texts(self) -> Tensor:
        """Embeddings (S, E), unit length, of all names of all classes for the CLIP branch."""
        return self.branch_bank.embed([(name,) for names in self.names for name in names])

    def clip_scores(
        self, sample: Sample, generated: GeneratorOutput | UnnamedMasks
    ) -> tuple[Tensor, Tensor]:
        """CLIP's class logits (Q, K) of the generated masks, and (Q,) bool, True for masks that it can see.

        Args:
            sample: a sample of evaluation, see `forward`.
            generated: masks of its image, as `generate` gives them, or given ones.
        """
        # Masks of the image alone may have another resolution than the model's input.
        whole = generated.canvas == generated.image_size
        (image,) = on_device([sample], "image", self.device)
        texts = self.branch_texts()
        with autocast(self.device, self.test_precision):
            return self.branch.score(
                image.float() / 255,
                generated.mask_logits,
                texts,
                self.synonyms,
                None if whole else generated.canvas,
                generated.backbone_map,
            )

    def reading(self) -> Reading:
        """How it reads names and images, for the protocol of its numbers."""
        templates = f"{templates_text(self.branch_bank.templates)} for CLIP"
        void = "void, scored by the generator"
        if self.fusion.void_discount:
            void += f", less {self.fusion.void_discount:g} times CLIP's best class"
        if not self.masks_given:
            templates += f", {templates_text(self.generator_bank.templates)} for the generator"
        else:
            void = "none: masks from elsewhere are named by CLIP alone"
        return Reading(
            BEST_OF_NAMES,
            templates,
            background=void,
            features=self._features_text(),
            scale=f"{self.branch.clip.similarity_scale.item():.4g}",
            size=f"CLIP reads {self.branch.size_text()}{self._order_text()}",
        )

    def _order_text(self) -> str:
        """What is resized to the original image, where that is not always masks."""
        if self.settings.masks_first:
            return ""
        return "; of semantic labels alone scores are resized, not masks"

    def _features_text(self) -> str:
        if isinstance(self.branch, MaskedAttention):
            return "masked attention"
        if isinstance(self.branch, BackbonePooling):
            return "the backbone's last stage, pooled as CLIP pools it"
        return features_text(self.branch.clip.visual)
