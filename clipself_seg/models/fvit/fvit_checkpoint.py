"""F-ViT's checkpoints, under the official names, with the vocabulary that they were trained on."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipself_seg.checkpoints.read import Checkpoint, fit
from clipself_seg.clip import model as clip_model
from clipself_seg.errors import InputError
from clipself_seg.models.model_base import as_bytes, on_host

if TYPE_CHECKING:
    from clipself_seg.models.fvit.fvit import FViT

logger = logging.getLogger(__name__)

BACKBONE = "backbone."
CLIP = "clip."
RESIZERS = ("backbone.interpolate",)
# A layer that nothing uses, and embeddings of the training vocabulary, which are made anew from the text tower
# (wusize/CLIPSelf, F-ViT). Rotary tables of its tower are in `clip.weights.NO_WEIGHTS`.
IGNORED = ("roi_head.bbox_head.fc_cls.", "roi_head.bbox_head.all_embeddings")
COUNTER = "num_batches_tracked"
# Entry with the training vocabulary: bytes of a JSON list of lists of names.
NAMES = "training_names"
# Entry with the hash of the CLIP, bytes of its hexadecimal digits, in a checkpoint that holds none.
CLIP_HASH = "clip_hash"


def read(model: FViT, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads a checkpoint of this project or a released one into the model, and logs a report.

    Args:
        model: an `FViT`.
        tensors: name -> tensor of the file.
        source: the file, for messages.

    Raises:
        InputError: missing, unexpected or misshapen tensors; a checkpoint of another model or tower; a
            released checkpoint, and MODEL.CLIP.WEIGHTS gives no text tower.
    """
    # A model of boxes alone, such as a transfer, leaves out the mask head.
    ignored = IGNORED if model.has_masks else (*IGNORED, "roi_head.mask_head.")
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith(ignored)}
    names, clip_hash = given.pop(NAMES, None), given.pop(CLIP_HASH, None)
    clip = {
        name.removeprefix(BACKBONE): given.pop(name)
        for name in list(given)
        if name.startswith(BACKBONE) and not name.startswith(RESIZERS)
    }
    own = {n: t for n, t in model.state_dict().items() if not n.startswith(CLIP)}
    wanted = {n: t for n, t in own.items() if n in given or not n.endswith(COUNTER)}
    remedy = (
        "MODEL.FVIT.MASKS and RPN_NORM say which parts there are (OV-LVIS has both, OV-COCO neither); a CLIP belongs "
        "in MODEL.CLIP.WEIGHTS"
    )
    sizes = "MODEL.CLIP.NAME and MODEL.FVIT.CHANNELS give the sizes"
    detector = fit(given, wanted, source, remedy=remedy, sizes=sizes)
    if clip_hash is None:
        _load_clip(model, clip, source)
    elif not torch.equal(clip_hash, as_bytes(own_hash := model.clip.weights_hash())):
        raise InputError(
            f"{source} was trained on another CLIP than the one of MODEL.CLIP.WEIGHTS, {own_hash}: give the former"
        )
    model.load_state_dict(detector, strict=False)
    if names is not None:
        model.trained_names = _names(names, source)
    logger.info(
        "FViT <- %s: %d tensors of the detector and %d of CLIP loaded, 0 missing, 0 unexpected, %d ignored",
        source,
        len(given),
        len(clip),
        sum(name.startswith(IGNORED) for name in tensors),
    )


def write(model: FViT) -> dict[str, object]:
    """Content of a file: weights under the official names, with both towers of CLIP, and the training vocabulary."""
    own = on_host(model.state_dict())
    clip = {n.removeprefix(CLIP): t for n, t in own.items() if n.startswith(CLIP)}
    official = model.clip.file_tensors(clip)
    state = {f"{BACKBONE}{name}": tensor for name, tensor in official.items()}
    state |= {n: t for n, t in own.items() if not n.startswith(CLIP)}
    state[NAMES] = as_bytes(json.dumps([list(names) for names in model.trained_names]))
    return {"state_dict": state, **model.clip.visual.dense_feature.entries_but_of_token()}


def _load_clip(model: FViT, given: Mapping[str, Tensor], source: str) -> None:
    """Loads the towers of a checkpoint; where it has no text tower, the one that is there stays."""
    state = dict(given)
    texts = any(name.startswith(("text.", "transformer.", "token_embedding")) for name in state)
    if isinstance(model.clip, clip_model.CLIP) and not texts:
        if model.clip.report is None:
            raise InputError(
                f"{source} has no text tower: name the CLIP that it was trained on in MODEL.CLIP.WEIGHTS"
            )
        own = model.clip.file_tensors(model.clip.state_dict())
        state |= {n: t for n, t in own.items() if not n.startswith("visual.")}
    checkpoint = Checkpoint(Path(source), state, "F-ViT checkpoint")
    device = model.device
    model.clip.load_file(checkpoint)
    model.clip.requires_grad_(False)
    model.train_tower()
    model.clip.to(device)


def _names(stored: Tensor, source: str) -> tuple[tuple[str, ...], ...]:
    """The training vocabulary of a checkpoint: names of each class."""
    try:
        content = json.loads(bytes(stored.tolist()).decode())
        return tuple(tuple(str(name) for name in synonyms) for synonyms in content)
    except (TypeError, ValueError, RecursionError):
        raise InputError(f"{source}: {NAMES} is no list of class names: export it again") from None
