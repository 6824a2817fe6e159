"""Image-level supervision, which CLIPSelf is compared with: contrastive training of images and their captions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clipself_seg.clip import DenseCLIP
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.heads.distillation.info_nce import info_nce_loss
from clipself_seg.models.distillation.step import IMAGE, Step


class CaptionContrast:
    """InfoNCE of whole images at the student's size and their captions (CLIPSelf, Table 1c, #5*).

    The image embedding is the ordinary one, with attention in the last block, so that all of that block
    learns. Text tower and temperature are the original's, frozen. Of samples it reads "image" and
    "caption", a text.
    """

    reads: tuple[str, ...] = (IMAGE,)

    def setup_training(
        self, teacher: DenseCLIP, vocabulary: Vocabulary | Sequence[str] | None
    ) -> None:
        """Does nothing: it needs no classes."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        """{"loss_captions": `info_nce_loss` of all processes' images, or of this one's if they train alone}."""
        scale = step.teacher.logit_scale.exp()
        loss = info_nce_loss(
            step.image_BE, step.caption_BE, step.caption_tokens_BL, scale, gather=step.synchronised
        )
        return {"loss_captions": loss}
