"""CLIPSelf's own objective: dense features of a region are pulled towards the teacher's embedding of its crop."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clipself_seg.clip import DenseCLIP
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.heads.distillation.losses import cosine_distance
from clipself_seg.models.distillation.step import DENSE, Step


class CropDistillation:
    """The cosine distance of regions and crops (CLIPSelf, equation 1).

    Of samples it reads "image", "boxes" (n, 4) XYXY in [0, 1] of the padded square and "crops" uint8
    (n, 3, S0, S0).
    """

    reads: tuple[str, ...] = (DENSE,)

    def setup_training(
        self, teacher: DenseCLIP, vocabulary: Vocabulary | Sequence[str] | None
    ) -> None:
        """Does nothing: it needs no classes."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        """{"loss_clipself": mean of the distances over regions or images, in [0, 2]}."""
        distance_R = cosine_distance(step.student_RE, step.teacher_RE)
        return {"loss_clipself": step.region_mean(distance_R)}
