"""How a panoptic model reads class names and images, in words."""

from __future__ import annotations

from clipself_seg.clip import TextBank
from clipself_seg.clip.prompts import templates_text
from clipself_seg.heads.panoptic.clip_branches import ClipBranch
from clipself_seg.models.panoptic.outputs import FusionSettings
from clipself_seg.models.protocol import BEST_OF_NAMES, Reading


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
            size=f'CLIP reads {side} x {side} px ("{self.branch.aspect}")',
        )
