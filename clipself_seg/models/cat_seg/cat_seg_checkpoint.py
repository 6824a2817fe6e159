"""CAT-Seg's checkpoints, under the names of its authors or those of this project; written under the former."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipself_seg.checkpoints.read import fit
from clipself_seg.checkpoints.zoo import SHIPPED_MODELS
from clipself_seg.clip.layers import SplitAttention
from clipself_seg.clip.weights import to_native
from clipself_seg.models.model_base import on_host

if TYPE_CHECKING:
    from clipself_seg.models.cat_seg.cat_seg import CATSeg

logger = logging.getLogger(__name__)

# Beginnings of names of CAT-Seg's checkpoints, and parts of names that say what a tensor is.
HEAD = "sem_seg_head."
CLIP = f"{HEAD}predictor.clip_model."
AGGREGATOR = f"{HEAD}predictor.transformer."
PACKED = "in_proj_weight"
MATRICES = SplitAttention.MATRICES
# Buffers that CAT-Seg's shifted windows keep in a file, which follow from the sizes (KU-CVLAB/CAT-Seg,
# cat_seg/modeling/transformer/model.py). Beside "model", which alone is read, files have AdamW's two moments of what
# trained: model_base.pth has 819 MB, of which 617 are weights.
MASKS = "attn_mask"
PADDING = ("attention.padding_tokens", "attention.padding_guidance")


def read(model: CATSeg, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads a checkpoint into the model, whole; of shipped weights, which hold what training changed, these alone.

    Args:
        model: a `CATSeg`.
        tensors: name -> tensor of the file.
        source: the file, or the name of shipped weights.

    Raises:
        InputError: missing, unexpected or misshapen tensors; another version or size of CAT-Seg.
    """
    own = model.state_dict()
    if not any(name.endswith(PADDING) for name in own):  # MODEL.CAT_SEG.PAD_LEN is 0
        tensors = {name: of for name, of in tensors.items() if not name.endswith(PADDING)}
    if source in SHIPPED_MODELS:
        # Attention is apart where the file has it so. What is of another model is left to `fit`.
        state = _with_attention_like(own, tensors)
        tensors = {**state, **tensors} if tensors.keys() <= state.keys() else tensors
    tensors = own_names(tensors, own)
    origin, remedy = f"the CAT-Seg checkpoint {source}", _remedy(tensors)
    model.load_state_dict(fit(tensors, own, origin, remedy=remedy))
    logger.info("CATSeg <- %s: %d tensors loaded, 0 missing, 0 unexpected", source, len(own))


def write(model: CATSeg) -> dict[str, object]:
    """Content of a file that CAT-Seg's code loads: the weights under its names, masks included."""
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
            named[f"{AGGREGATOR}{name.removesuffix('mask')}{MASKS}"] = buffer
    return {"model": on_host(named), **model.clip.visual.dense_feature.entries_but_of_token()}


def rename(model: Any, state: dict[str, Tensor], *_: object) -> None:
    """Gives the tensors of a state dict the model's own names, before `load_state_dict` compares them."""
    renamed = own_names(state, model.state_dict())
    state.clear()
    state.update(renamed)


def own_names(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a checkpoint under this project's names, with attention packed or apart as the model has it.

    Args:
        state: name -> tensor, under CAT-Seg's names or those of this project.
        wanted: the state dict of the model.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if any(name.startswith(HEAD) for name in state):
        clip = {n.removeprefix(CLIP): t for n, t in state.items() if n.startswith(CLIP)}
        others = {n: t for n, t in state.items() if not n.startswith(CLIP)}
        state = {f"clip.{name}": tensor for name, tensor in to_native(clip).items()}
        for name, tensor in others.items():
            if not name.endswith(MASKS):
                state[name.replace(AGGREGATOR, "aggregator.", 1)] = tensor
    return _with_attention_like(state, wanted)


def _with_attention_like(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
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


def _remedy(tensors: Mapping[str, Tensor]) -> str:
    """The way out for a checkpoint that does not fit, by what it seems to be."""
    if not any(name.startswith("aggregator.") for name in tensors):
        return (
            "this is no CAT-Seg checkpoint, it has no aggregator; a CLIP alone belongs in MODEL.CLIP.WEIGHTS, a "
            "distilled image tower in MODEL.CLIP.VISUAL_INIT"
        )
    if "clip.logit_scale" not in tensors:
        return "it has only a part of its CLIP: give the name of the model, such as clipself://mini-cat-seg"
    return (
        "is it of another CLIP or version? semseg/catseg+openai_vitb16 is of a CLIP with 12 blocks, "
        "semseg/catseg+openai_vitl14_336 of one with 24, each with 1 prompt and guided by CLIP; version 1, with 80 "
        "prompts and guided by a backbone, is semseg/catseg_v1_r101_vitb16 or semseg/catseg_v1_swinb_vitl14_336"
    )
