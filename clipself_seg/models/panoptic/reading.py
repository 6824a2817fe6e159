"""How a panoptic model reads class names and images, in words."""

from __future__ import annotations

from clipself_seg.clip import TextBank
from clipself_seg.clip.prompts import templates_text
from clipself_seg.heads.panoptic.class_logits import similarity_scale
from clipself_seg.heads.panoptic.clip_branches import ClipBranch, MaskedAttention
from clipself_seg.models.panoptic.outputs import FusionSettings
from clipself_seg.models.protocol import BEST_OF_NAMES, Reading, features_text


class PanopticReading:
    """What has a CLIP branch and a text bank for it and for the generator."""

    branch: ClipBranch
    branch_bank: TextBank
    generator_bank: TextBank
    masks_given: bool
    fusion: FusionSettings

    def reading(self) -> Reading:
        """How it reads names and images, for the protocol of its numbers."""
        side = self.branch.input_size
        templates = [
            templates_text(bank.templates) for bank in (self.branch_bank, self.generator_bank)
        ]
        void = "void, scored by the generator"
        if self.fusion.void_discount:
            void += f", less {self.fusion.void_discount:g} times CLIP's best class"
        if self.masks_given:
            void = "none: masks from elsewhere are named by CLIP alone"
        return Reading(
            BEST_OF_NAMES,
            f"{templates[0]} for CLIP, {templates[1]} for the generator",
            background=void,
            features=self._features_text(),
            scale=f"{similarity_scale(self.branch.clip.logit_scale).item():.4g}",
            size=f'CLIP reads {side} x {side} px ("{self.branch.aspect}")',
        )

    def _features_text(self) -> str:
        if isinstance(self.branch, MaskedAttention):
            return "masked attention"
        return features_text(self.branch.clip.visual)
