"""From a configuration to a model with its weights: one registry, below prediction and training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from clipself_seg import models
from clipself_seg.checkpoints.names import name_problem
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.checkpoints.shipped import SHIPPED_MODELS
from clipself_seg.checkpoints.training_state import (
    is_training_state,
    load_training_state,
)
from clipself_seg.clip.signatures import signature_of
from clipself_seg.clip.weights import to_native
from clipself_seg.errors import InputError, last_line, nearest
from clipself_seg.models import CLIPSelf, RegionReader


def build_model(cfg: CfgNode) -> Any:
    """The configured meta-architecture with ``MODEL.WEIGHTS``, if given, on its device.

    Random weights follow from ``SEED``.

    Raises:
        InputError: an unknown meta-architecture or CLIP, or a checkpoint that does not fit.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in models.__all__:
        raise InputError(
            f'unknown MODEL.META_ARCHITECTURE "{name}"; {nearest(name, models.__all__)}'
        )
    torch.manual_seed(cfg.SEED)
    model = META_ARCH_REGISTRY.get(name)(cfg)
    if weights := cfg.MODEL.WEIGHTS:
        shipped = SHIPPED_MODELS.get(weights)
        tensors = read_checkpoint(shipped or weights).tensors
        if shipped and name == "CATSeg":
            # What is shipped holds what training changed; the rest is the CLIP that is there already.
            tensors = model.state_dict() | tensors
        if is_training_state(tensors):
            load_training_state(Path(weights), model)
        else:
            _load_weights(model, tensors, weights)
    return model.to(cfg.MODEL.DEVICE)


def _load_weights(model: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """Tensors of MODEL.WEIGHTS for a model; CAT-Seg and OpenPanoptic explain what does not fit themselves."""
    if isinstance(model, CLIPSelf | RegionReader):
        if signature_of(to_native(tensors)):
            raise InputError(
                f"MODEL.WEIGHTS {source} is a CLIP, which {type(model).__name__} takes as "
                "MODEL.CLIP.WEIGHTS: give it there and leave MODEL.WEIGHTS empty"
            )
        if problem := name_problem(model.state_dict(), tensors):
            raise InputError(
                f"MODEL.WEIGHTS {source} {problem.what} ({problem.names}): it is no checkpoint of "
                f"{type(model).__name__}, which needs none besides MODEL.CLIP.WEIGHTS"
            )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # of torch, several lines long
        raise InputError(
            f"MODEL.WEIGHTS {source} does not fit the model: {last_line(error)}"
        ) from None
