"""Checkpoints of `OpenPanoptic`: reads ours and those that ODISE, FC-CLIP and PMT released; writes ours.

A checkpoint holds what trains, under the official names; CLIP and Stable Diffusion come from files of their own. What a
checkpoint carries of a CLIP has to be the model's.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.read import fit, nearly_equal
from clipself_seg.clip import VisionLanguageBackbone
from clipself_seg.clip.weights import NO_WEIGHTS, to_native
from clipself_seg.errors import InputError
from clipself_seg.models.model_base import as_bytes, on_host
from clipself_seg.models.panoptic.mask_sources import Generated

if TYPE_CHECKING:
    from clipself_seg.models.panoptic.open_panoptic import OpenPanoptic

logger = logging.getLogger(__name__)

GENERATOR = "generator."
CLIP = "backbone.clip_model."
# Beginnings of all names of a file, in this order: of several processes, of our own state, of PMT's.
WRAPPERS = ("module.", GENERATOR, "network.")
# Entries with the hash of what was frozen in training (bytes of its hexadecimal digits), and with the names of a plain
# decoder's taps, for tensors of other taps have the same names and shapes; and the key that gives others.
CLIP_HASH = "clip_hash"
SOURCE_HASH = "feature_source_hash"
TAPS = "feature_taps"
KEYS = {
    CLIP_HASH: "MODEL.CLIP.WEIGHTS (a distilled CLIP belongs in MODEL.CLIP_BRANCH.WEIGHTS)",
    SOURCE_HASH: "MODEL.DIFFUSION.WEIGHTS",
    TAPS: "MODEL.PLAIN_DECODER.TAPS",
}
# Entry with alpha and beta, of which official checkpoints have none.
EXPONENTS = "fusion_exponents"
# Parameters of the losses, which nothing here needs (Mask2Former's SetCriterion: empty_weight), and what ODISE freezes,
# CLIP and Stable Diffusion (the prefixes of its load log). FC-CLIP's files have tensors of `CLIP` besides.
IGNORED = (
    "criterion.",
    "pixel_mean",
    "pixel_std",
    "clip_head.clip.",
    "category_head.clip.",
    "word_head.clip.",
    "backbone.feature_extractor.ldm_extractor.",
)
# Classifier of fixed classes, which PMT's released decoders have, and beginnings of the names that they do not have.
CLASSIFIER = "decoder.class_head."
NOT_RELEASED = (
    "void_embedding.",
    "decoder.mask_pooling_proj.",
    "decoder.class_embed.",
    "decoder.logit_scale",
    "decoder.inputs.",
)


def write(model: OpenPanoptic) -> dict[str, object]:
    """Content of a checkpoint: what trains, hashes of what is frozen, taps, exponents and the CLIP's dense feature."""
    masks = model.masks.require_generator()
    stated = {name: as_bytes(text) for name, text in _stated(model, masks).items()}
    # In float64, as a configuration has them: 0.35 stays 0.35.
    stated[EXPONENTS] = torch.tensor(model.exponents, dtype=torch.float64)
    dense = model.clip.visual.dense_feature.entries_but_of_token()
    return {"model": on_host(trained_state(model)) | stated, **dense}


def read(model: OpenPanoptic, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads a checkpoint into a model, with the exponents that it carries, and logs a report.

    Args:
        model: of the same kind, variant and source as the checkpoint.
        tensors: name -> tensor of the file: official names, with or without ``module.``, or those of
            ``model.state_dict()``; or a decoder that PMT's authors released, whose words have to be trained.
        source: the file, for messages.

    Raises:
        InputError: missing, unexpected or misshapen tensors, as in a checkpoint of another kind of model; another CLIP
            than the model's; exponents out of [0, 1].
    """
    masks, origin = model.masks.require_generator(), f"the panoptic checkpoint {source}"
    given = dict(tensors)
    for beginning in WRAPPERS:
        given = {name.removeprefix(beginning): tensor for name, tensor in given.items()}
    for entry, own in _stated(model, masks).items():
        if entry in given and not torch.equal(given[entry], as_bytes(own)):
            raise InputError(
                f"{origin} was trained on {entry} {_text(given[entry])}, the model has {own}: give the former as "
                f"{KEYS[entry]}"
            )
    exponents = carried_exponents(given, origin)
    of_clip, report = carried_clip(model.clip, given, origin)

    state = dict(model.state_dict())
    frozen = {name for name in state if name.startswith(_frozen_prefixes(model))}
    released = any(name.startswith(CLASSIFIER) for name in given)
    ignored = (*IGNORED, CLIP, CLASSIFIER)
    wanted = trained_state(model)
    if released:
        wanted = {n: tensor for n, tensor in wanted.items() if not n.startswith(NOT_RELEASED)}
    left = {n for n in given if n in frozen or n in (*KEYS, EXPONENTS) or n.startswith(ignored)}
    own_tensors = {name: tensor for name, tensor in given.items() if name not in left}
    remedy = (
        "MODEL.MASK_GENERATOR.KIND, VARIANT and SOURCE say which parts there are; a CLIP belongs in MODEL.CLIP.WEIGHTS "
        "or MODEL.CLIP_BRANCH.WEIGHTS"
    )
    sizes = "MODEL.CLIP.NAME, MODEL.MASK_FORMER and MODEL.PYRAMID give the sizes"
    for name, tensor in fit(own_tensors, wanted, origin, remedy=remedy, sizes=sizes).items():
        state[name if name in state else GENERATOR + name] = tensor
    for name, tensor in of_clip.items():
        state["clip." + name] = tensor
        if model.branch_clip is model.clip:
            state["branch_clip." + name] = tensor
    model.load_state_dict(state)
    logger.info(
        "OpenPanoptic <- %s: %d loaded, 0 missing, 0 unexpected, %d ignored; frozen tensors of CLIP and feature source "
        "that are not in it stay as they are",
        origin,
        len(wanted),
        sum(name.startswith(IGNORED) for name in given),
    )
    if report:
        logger.info("CLIP of the checkpoint: %s", report)
    masks.untrained = None
    if released:
        masks.untrained = masks.void()
        logger.warning(
            "%s is a decoder of fixed classes: its classifier is left out, and the head that compares masks with texts "
            "has to be trained",
            origin,
        )
    if own_exponents := {n: exponents[n] for n in model.fusion.of_weights if n in exponents}:
        logger.info("exponents of the fusion that the checkpoint carries: %s", own_exponents)
        alpha, beta = (own_exponents.get(name, getattr(model.fusion, name)) for name in exponents)
        model.fusion = dataclasses.replace(model.fusion, alpha=alpha, beta=beta)


def rename(model: OpenPanoptic, state: dict[str, Tensor], *_: object) -> None:
    """Gives the tensors of a state dict the model's own names, before `load_state_dict` compares them."""
    own = model.state_dict().keys()
    for name in [name for name in state if GENERATOR + name in own]:
        state[GENERATOR + name] = state.pop(name)


def trained_state(model: OpenPanoptic) -> dict[str, Tensor]:
    """Tensors that a checkpoint of a model holds, all but the frozen ones, under official names."""
    frozen = _frozen_prefixes(model)
    return {
        name.removeprefix(GENERATOR): tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(frozen)
    }


def _frozen_prefixes(model: OpenPanoptic) -> tuple[str, ...]:
    return ("clip.", "branch_clip.", *model.masks.frozen_prefixes())


def frozen_hashes(model: OpenPanoptic) -> dict[str, str]:
    """Hashes of the weights that do not train, CLIP and the feature source's frozen part, by checkpoint entry."""
    hashes = {CLIP_HASH: model.clip.weights_hash()}
    if prefixes := model.masks.frozen_prefixes():
        source = {n: t for n, t in model.state_dict().items() if n.startswith(prefixes)}
        hashes[SOURCE_HASH] = hash_tensors(source)
    return hashes


def _stated(model: OpenPanoptic, masks: Generated) -> dict[str, str]:
    """Entry -> its text: hashes of what is frozen, and the taps where tensors do not tell them."""
    taps = masks.backbone.taps
    return frozen_hashes(model) | ({TAPS: ", ".join(taps)} if taps else {})


def carried_exponents(state: Mapping[str, Tensor], origin: str) -> dict[str, float]:
    """Exponents that a checkpoint carries, "alpha" and "beta"; nothing where it carries none, as the official ones.

    Raises:
        InputError: they are not two numbers in [0, 1].
    """
    if (tensor := state.get(EXPONENTS)) is None:
        return {}
    if tensor.shape == (2,) and tensor.is_floating_point():
        alpha, beta = tensor.tolist()
        if 0 <= alpha <= 1 and 0 <= beta <= 1:
            return {"alpha": alpha, "beta": beta}
    raise InputError(f"{origin} has {EXPONENTS} that are not two numbers in [0, 1]: fetch it again")


def _text(tensor: Tensor) -> str:
    """Text that an entry holds as bytes of ASCII, as far as it does, for a message."""
    if tensor.dtype == torch.uint8 and tensor.dim() == 1:
        return bytes(tensor.tolist()).decode("ascii", "replace")
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def carried_clip(
    clip: VisionLanguageBackbone, given: Mapping[str, Tensor], origin: str
) -> tuple[dict[str, Tensor], str]:
    """Compares the CLIP in a checkpoint, or the part of one, with a model's, which has to be the same.

    A model whose CLIP has no weights takes the checkpoint's, if that is whole.

    Args:
        clip: the model's CLIP.
        given: tensors of the checkpoint by name, without ``module.``.
        origin: the checkpoint, for messages.

    Returns:
        The tensors that the model takes, under native names; and a sentence about what there was, "" if there was
        nothing.

    Raises:
        InputError: it is another CLIP, or a part of one where the model has no weights.
    """
    carried = {
        name.removeprefix(CLIP): tensor
        for name, tensor in given.items()
        if name.startswith(CLIP) and not NO_WEIGHTS.search(name)
    }
    if not carried:
        return {}, ""
    takes_all = clip.report is None
    # Under the names of files, for a part of a CLIP need not tell its layout.
    own = clip.file_tensors(clip.state_dict())
    carried = fit(
        carried,
        own if takes_all else {name: tensor for name, tensor in own.items() if name in carried},
        f"the CLIP of {origin}, for MODEL.CLIP.NAME {clip.name},",
        remedy="MODEL.CLIP.NAME and MODEL.CLIP.WEIGHTS have to be those that it was trained on",
    )
    if takes_all:
        return to_native(carried), f"all {len(own)} tensors of CLIP are the checkpoint's"
    other = [name for name, t in carried.items() if not nearly_equal(t.to(own[name]), own[name])]
    if other:
        raise InputError(
            f"MODEL.CLIP.WEIGHTS is not the {clip.name} that {origin} was trained on: {len(other)} tensors differ, "
            f"such as {other[0]}; give the weights that it was trained on"
        )
    return {}, (
        f"that of MODEL.CLIP.WEIGHTS, of which the checkpoint has {len(carried)} of {len(own)} tensors"
    )
