"""Translates CAT-Seg's checkpoints to the names here, strictly and with a report, and back.

A checkpoint of the CVPR 2024 code has 484 tensors (ViT-B) or 652 (ViT-L), its whole CLIP among them.
Two of them per layer stack are masks that follow from the sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipself_seg.checkpoints.names import name_problem
from clipself_seg.clip.layers import SplitAttention
from clipself_seg.clip.weights import to_native as clip_names
from clipself_seg.errors import InputError

if TYPE_CHECKING:
    from clipself_seg.models.cat_seg.model import CATSeg

CLIP = "sem_seg_head.predictor.clip_model."
AGGREGATOR = "sem_seg_head.predictor.transformer."
BLOCK = re.compile(r"clip\.visual\.(?:transformer\.resblocks|blocks)\.(\d+)\.")
MASK = re.compile(r"attn_mask$")
PACKED = "in_proj_weight"
MATRICES = SplitAttention.MATRICES


def read_state(model: CATSeg, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Reads the tensors of `model` from a state dict under CAT-Seg's names or those of this project.

    Args:
        model: a `CATSeg`.
        state: name -> tensor.

    Returns:
        A complete state dict of the model, and a line for the log.

    Raises:
        InputError: missing, unexpected or misshapen tensors; another version or size of CAT-Seg.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    official = any(name.startswith(("sem_seg_head.", "upsample")) for name in state) and not any(
        name.startswith("aggregator.") for name in state
    )
    tensors = _from_official(state) if official else dict(state)
    wanted = model.state_dict()
    tensors = _with_attention_like(tensors, wanted)
    _check_version(tensors, wanted)
    if problem := name_problem(wanted, tensors):
        raise InputError(
            f"the CAT-Seg checkpoint {problem.what}: {problem.names}; is it one of another CLIP "
            "(MODEL.CLIP.NAME)? Detectron2's checkpointer leaves out tensors of another shape"
        )
    for name, target in wanted.items():
        tensors[name] = _fitting(name, tensors[name], target)
    layout = "CAT-Seg's names" if official else "own names"
    line = (
        f"CATSeg <- checkpoint ({layout}): {len(wanted)} loaded, {len(state) - len(wanted)} "
        "rebuilt or repacked, 0 missing, 0 unexpected"
    )
    return tensors, line


def to_official(model: CATSeg) -> dict[str, Tensor]:
    """The model's weights under the names of CAT-Seg's checkpoints, masks included."""
    named: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "clip":
            official = CLIP + rest.removeprefix("text.")
            if official.endswith(PACKED) and model.backbone is None:
                # The CVPR version has query, key and value apart, whatever trains.
                prefix = official.removesuffix(PACKED)
                named |= {prefix + m: t for m, t in zip(MATRICES, tensor.chunk(3))}
            else:
                named[official] = tensor
        elif part == "aggregator":
            named[AGGREGATOR + rest] = tensor
        else:
            named[name] = tensor
    for name, buffer in model.aggregator.named_buffers():
        if name.endswith(".mask"):
            named[f"{AGGREGATOR}{name.removesuffix('mask')}attn_mask"] = buffer
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def _from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    clip = {n.removeprefix(CLIP): t for n, t in state.items() if n.startswith(CLIP)}
    tensors = {f"clip.{name}": tensor for name, tensor in clip_names(clip).items()}
    for name, tensor in state.items():
        if name.startswith(CLIP) or MASK.search(name):
            continue
        if name.startswith(AGGREGATOR):
            name = f"aggregator.{name.removeprefix(AGGREGATOR)}"
        tensors[name] = tensor
    return tensors


def _with_attention_like(
    tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Query, key and value packed or apart, as the model has them."""
    converted = dict(tensors)
    for name in tensors:
        prefix, _, leaf = name.rpartition(".")
        parts = [f"{prefix}.{matrix}" for matrix in MATRICES]
        if leaf == PACKED and parts[0] in wanted:
            converted |= dict(zip(parts, converted.pop(name).chunk(3)))
        elif (
            leaf == MATRICES[0] and f"{prefix}.{PACKED}" in wanted and set(parts) <= tensors.keys()
        ):
            converted[f"{prefix}.{PACKED}"] = torch.cat([converted.pop(part) for part in parts])
    return converted


def _check_version(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    depths = [_clip_depth(names) for names in (tensors, wanted)]
    if depths[0] and depths[0] != depths[1]:
        raise InputError(
            f"this is a CAT-Seg checkpoint of a CLIP with {depths[0]} blocks, the model's has {depths[1]}: "
            "configs/semseg has *_vitb16 for 12 and *_vitl14_336 for 24"
        )
    first = "aggregator.conv1.weight"
    if not any(name.startswith("aggregator.") for name in tensors):
        raise InputError(
            "this is no CAT-Seg checkpoint: it has no aggregator; a CLIP alone belongs in "
            "MODEL.CLIP.WEIGHTS, a distilled image tower in MODEL.CLIP.VISUAL_INIT"
        )
    # Detectron2's checkpointer leaves out what has another shape.
    needs = wanted[first].shape[1]
    has = tensors[first].shape[1] if first in tensors else needs
    if has != needs:
        raise InputError(
            f"this is a CAT-Seg checkpoint with {has} prompts as channels of the cost volume, the "
            f"model has {needs}: "
            + (
                "version 1 (80) belongs to configs/semseg/catseg_v1_*"
                if has > needs
                else "the CVPR version (1) belongs to configs/semseg/catseg_cvpr_*"
            )
        )
    backbones = [any(n.startswith("backbone.") for n in names) for names in (tensors, wanted)]
    if backbones[0] != backbones[1]:
        raise InputError(
            "the checkpoint is guided by "
            + ("a backbone, the model by CLIP" if backbones[0] else "CLIP, the model by a backbone")
            + ": MODEL.CAT_SEG.GUIDANCE chooses between version 1 and the CVPR version"
        )


def _clip_depth(names: Iterable[str]) -> int:
    matches = (BLOCK.match(name) for name in names)
    return max((1 + int(match[1]) for match in matches if match), default=0)


def _fitting(name: str, tensor: Tensor, target: Tensor) -> Tensor:
    if tensor.shape != target.shape and tensor.numel() == target.numel() == 1:
        tensor = tensor.reshape(target.shape)
    if tensor.shape != target.shape:
        raise InputError(
            f"the CAT-Seg checkpoint has {name} of shape {tuple(tensor.shape)}, the model needs "
            f"{tuple(target.shape)}: is it one of another CLIP? (MODEL.CLIP.NAME)"
        )
    return tensor.to(target.dtype)
