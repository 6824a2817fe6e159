"""The interface between `CLIPSelf` and its training objectives, each a class in a file of its own beside this one.

A further objective is a class with the members of `Objective`, a line in `build.OBJECTIVES` and a value of
``MODEL.CLIPSELF.TARGET``; the samples that it reads are made by a mapper that `training.tasks.RegionTask` chooses. A
further term of the target "crops" is a function and a line in `weighted.TERMS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from clipself_seg.clip import DenseCLIP
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.models.distillation.step import Step


class Objective(Protocol):
    """The interface of training objectives, which have no trainable weights of their own.

    Attributes:
        reads: what it reads of the student, see `step.READS`. What none of it depends on, such as query and key
            of the last block for dense features alone, stays the original's.
    """

    reads: tuple[str, ...]

    def setup_training(
        self, teacher: DenseCLIP, vocabulary: Vocabulary | Sequence[str] | None
    ) -> None:
        """Takes what it needs of the classes before the first step.

        Args:
            teacher: the original CLIP.
            vocabulary: what `RegionTask` gives for the target; None where it needs no classes.
        """

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Losses of the samples of one process by name, scalars in float32 with their gradients.

        Their mean over the processes is the loss of the whole batch (`Step.region_count`). The model
        multiplies each by ``MODEL.CLIPSELF.LOSS_WEIGHT``.
        """
