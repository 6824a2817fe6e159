"""Checkpoints of F-ViT under the official names, loaded strictly and with a report.

A checkpoint of this project holds CLIP whole, below ``backbone.``, and the names of the training
vocabulary. A released one holds the image tower alone: texts then come from MODEL.CLIP.WEIGHTS. The one that
comes with the project holds no CLIP but the hash of the one that it was trained on.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipself_seg.checkpoints.names import name_problem
from clipself_seg.checkpoints.read import Checkpoint
from clipself_seg.clip.weights import load_strictly, to_layout
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path

if TYPE_CHECKING:
    from clipself_seg.models.fvit.model import FViT

logger = logging.getLogger(__name__)

BACKBONE = "backbone."
CLIP = "clip."
RESIZERS = ("backbone.interpolate",)
# Text of the training vocabulary (made anew from the text tower), a layer that nothing uses, tables that the
# towers make themselves.
IGNORED = ("roi_head.bbox_head.fc_cls.", "roi_head.bbox_head.all_embeddings")
COUNTER = "num_batches_tracked"
# Entry with the training vocabulary: bytes of a JSON list of lists of names.
NAMES = "training_names"
# Entry with the hash of the CLIP, bytes of its hexadecimal digits, in a checkpoint that holds none.
CLIP_HASH = "clip_hash"


def export_weights(model: FViT, path: str | os.PathLike[str]) -> None:
    """Writes all weights of a model under official names, atomically."""
    own = {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
    clip = {n.removeprefix(CLIP): t for n, t in own.items() if n.startswith(CLIP)}
    official = to_layout(clip, model.clip.architecture.kind)
    state = {f"{BACKBONE}{name}": tensor for name, tensor in official.items()}
    state |= {n: t for n, t in own.items() if not n.startswith(CLIP)}
    state[NAMES] = _as_bytes(json.dumps([list(names) for names in model.trained_names]))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        dense = model.clip.visual.dense_feature.entries_but_of_token()
        torch.save({"state_dict": state, **dense}, file)


def load_weights(model: FViT, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads a checkpoint of this project or a released one, and logs a report.

    Args:
        model: an `FViT`.
        tensors: name -> tensor.
        source: the file, for messages.

    Raises:
        InputError: missing, unexpected or misshapen tensors; a checkpoint of another model or tower; a
            released checkpoint, and MODEL.CLIP.WEIGHTS gives no text tower.
    """
    given = dict(tensors)
    if not any(name.startswith("rpn_head.") for name in given):
        raise InputError(
            f"{source} is no F-ViT checkpoint: it has no region proposal network; a CLIP belongs in "
            "MODEL.CLIP.WEIGHTS"
        )
    names = given.pop(NAMES, None)
    clip_hash = given.pop(CLIP_HASH, None)
    ignored = [n for n in given if n.startswith(IGNORED)]
    for name in ignored:
        del given[name]
    clip = {
        name.removeprefix(BACKBONE): given.pop(name)
        for name in list(given)
        if name.startswith(BACKBONE) and not name.startswith(RESIZERS)
    }
    _load_detector(model, given, source)
    if clip_hash is None:
        _load_clip(model, clip, source)
    else:
        _check_clip(model, clip_hash, source)
    if names is not None:
        model.trained_names = _read_names(names, source)
    logger.info(
        "FViT <- %s: %d tensors of the detector and %d of CLIP loaded, 0 missing, 0 unexpected, %d ignored",
        source,
        len(given),
        len(clip),
        len(ignored),
    )


def _load_detector(model: FViT, given: Mapping[str, Tensor], source: str) -> None:
    own = {n: t for n, t in model.state_dict().items() if not n.startswith(CLIP)}
    counters = {n: t for n, t in own.items() if n.endswith(COUNTER) and n not in given}
    read = {**counters, **given}
    if problem := name_problem(own, read):
        raise InputError(
            f"{source} {problem.what}: {problem.names}; MODEL.FVIT.MASKS and RPN_NORM say which parts there "
            "are (OV-LVIS has both, OV-COCO neither)"
        )
    for name, target in own.items():
        if read[name].shape != target.shape:
            raise InputError(
                f"{source} has {name} of shape {tuple(read[name].shape)}, the model needs "
                f"{tuple(target.shape)}: MODEL.CLIP.NAME and MODEL.FVIT.CHANNELS give the sizes"
            )
    model.load_state_dict(read, strict=False)


def _load_clip(model: FViT, given: Mapping[str, Tensor], source: str) -> None:
    """The tower of the checkpoint, with the text tower that is there if it has none."""
    state = dict(given)
    if not any(name.startswith(("text.", "transformer.", "token_embedding")) for name in state):
        if model.clip.report is None:
            raise InputError(
                f"{source} has no text tower: name the CLIP that it was trained on in MODEL.CLIP.WEIGHTS"
            )
        own = to_layout(model.clip.state_dict(), model.clip.architecture.kind)
        state |= {n: t for n, t in own.items() if not n.startswith("visual.")}
    checkpoint = Checkpoint(Path(source), state, "F-ViT checkpoint")
    device = model.device
    load_strictly(model.clip, model.clip.architecture, checkpoint)
    model.clip.requires_grad_(False)
    if model.clip_multiplier:
        model.train_tower()
    model.clip.to(device)


def _check_clip(model: FViT, stored: Tensor, source: str) -> None:
    """Refuse another CLIP than a checkpoint without one was trained on."""
    own = model.clip.weights_hash()
    if not torch.equal(stored, _as_bytes(own)):
        raise InputError(
            f"{source} was trained on another CLIP than the one of MODEL.CLIP.WEIGHTS, {own}: give the former"
        )


def _as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _read_names(stored: Tensor, source: str) -> tuple[tuple[str, ...], ...]:
    try:
        content = json.loads(bytes(stored.tolist()).decode())
        names = tuple(tuple(str(name) for name in synonyms) for synonyms in content)
    except (TypeError, ValueError, RecursionError):
        raise InputError(f"{source}: {NAMES} is no list of class names: export it again") from None
    return names
