"""Base of models that are nothing but a frozen CLIP, whose weights are the CLIP's.

Training with CLIPSelf ends in such a CLIP as well, and `load_model_state` is for it, too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from clipself_seg.checkpoints.read import name_problem
from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.kinds import signature_of
from clipself_seg.clip.text_bank import TextBank
from clipself_seg.clip.weights import to_native
from clipself_seg.errors import InputError, last_line


class FrozenCLIP(nn.Module):
    """A model whose weights are those of one frozen CLIP, ``MODEL.CLIP.WEIGHTS``.

    Attributes:
        clip: the CLIP, in evaluation mode.
        bank: its text embeddings of class names.
        precision: dtype of autocast, or None.
    """

    def __init__(
        self, *, clip: DenseCLIP, templates: str, precision: torch.dtype | None = None
    ) -> None:
        """
        Args:
            clip: CLIP with both towers.
            templates: prompts around a class name, see `TextBank`.
            precision: dtype of autocast, or None.
        """
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)
        self.bank = TextBank(clip, templates)
        self.precision = precision

    @classmethod
    def require_trained(cls, cfg: CfgNode) -> None:
        """Accepts every configuration: a CLIP can be evaluated as it is, a random one too."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.clip.logit_scale.device

    def weights_hash(self) -> str:
        """Hash of the weights that are evaluated."""
        return self.clip.weights_hash()

    def original_hash(self) -> str:
        """Hash of all weights: none of them trains."""
        return self.weights_hash()

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Loads ``MODEL.WEIGHTS``, which none of this project's commands writes; see `load_model_state`."""
        load_model_state(self, tensors, source)


def load_model_state(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load the whole state of a model that needs no weights but ``MODEL.CLIP.WEIGHTS``.

    Args:
        model: a `FrozenCLIP`, or a `CLIPSelf`.
        tensors: name -> tensor.
        source: the file, for messages.

    Raises:
        InputError: a CLIP, which has a key of its own, or a checkpoint of another model.
    """
    kind = type(model).__name__
    if signature_of(to_native(tensors)):
        raise InputError(
            f"MODEL.WEIGHTS {source} is a CLIP, which {kind} takes as "
            "MODEL.CLIP.WEIGHTS: give it there and leave MODEL.WEIGHTS empty"
        )
    if problem := name_problem(model.state_dict(), tensors):
        raise InputError(
            f"MODEL.WEIGHTS {source} {problem.what} ({problem.names}): it is no checkpoint of "
            f"{kind}, which needs none besides MODEL.CLIP.WEIGHTS"
        )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # of torch, several lines long
        raise InputError(
            f"MODEL.WEIGHTS {source} does not fit the model: {last_line(error)}"
        ) from None
