"""Checkpoints of panoptic segmentation under ODISE's and FC-CLIP's names, loaded strictly and with a report.

A checkpoint holds the weights that train: the feature source's own layers (``backbone.``), the segmentation head
(``sem_seg_head.``) and the text head (``word_head.`` or ``category_head.``) or void (``void_embedding.``). CLIP, and
Stable Diffusion, come from files of their own, whose hashes this project's checkpoints hold too, beside the exponents
of the fusion; FC-CLIP's checkpoints carry some or all of a CLIP, see `carried_clip.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.names import name_problem
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.mask_generator.clip_stages import CLIPStages
from clipself_seg.models.panoptic.carried_clip import CLIP, carried_clip, is_carried

if TYPE_CHECKING:
    from clipself_seg.models.panoptic.model import OpenPanoptic

logger = logging.getLogger(__name__)

# Entries with the hash of what was frozen in training (bytes of its hexadecimal digits), and the key that
# gives other weights.
CLIP_HASH = "clip_hash"
SOURCE_HASH = "feature_source_hash"
KEYS = {
    CLIP_HASH: "MODEL.CLIP.WEIGHTS (a distilled CLIP belongs in MODEL.CLIP_BRANCH.WEIGHTS)",
    SOURCE_HASH: "MODEL.DIFFUSION.WEIGHTS",
}
# Entry with alpha and beta, of which official checkpoints have none.
EXPONENTS = "fusion_exponents"
# Parameters of the losses, which nothing here needs, and what ODISE freezes: CLIP and Stable Diffusion, which
# come from files of their own.
IGNORED: tuple[str, ...] = ("criterion.", "pixel_mean", "pixel_std", "clip_head.clip.")
IGNORED += ("category_head.clip.", "word_head.clip.", "backbone.feature_extractor.ldm_extractor.")
# Parts of names of tensors that are as wide as CLIP's embeddings.
OF_CLIP = ("text_proj", "null_embed", "clip_project", "time_embed_project", "void_embedding")
# Parts of names of tensors that are as wide as the stages of a convolutional CLIP, or as its embeddings.
OF_STAGES = ("pixel_decoder.input_proj", "pixel_decoder.adapter_1", "class_embed.layers.2")
GENERATOR = "generator."
# First part of a name -> the variant and the source that have it.
VARIANTS = {"word_head": "caption", "category_head": "label", "void_embedding": "fcclip"}
SOURCES = {
    "backbone.feature_projections": "diffusion",
    "backbone.block_projections": "pyramid",
    CLIP: "clip",
}


def own_checkpoint(model: OpenPanoptic) -> dict[str, Tensor]:
    """`trained_state` on the CPU, the hashes of the model's CLIP and frozen feature source, and its exponents."""
    state = {n: tensor.detach().cpu().contiguous() for n, tensor in trained_state(model).items()}
    hashes = {
        entry: torch.tensor(list(digits.encode()), dtype=torch.uint8)
        for entry, digits in frozen_hashes(model).items()
    }
    # In float64, as a configuration has them: 0.35 stays 0.35.
    return state | hashes | {EXPONENTS: torch.tensor(model.exponents, dtype=torch.float64)}


def carried_exponents(state: Mapping[str, Any]) -> dict[str, float]:
    """Exponents that a checkpoint carries, "alpha" and "beta"; nothing where it carries none, as the official ones.

    Args:
        state: tensors of a checkpoint, with or without ``module.``.

    Raises:
        InputError: they are not two numbers in [0, 1].
    """
    tensor = state.get(EXPONENTS, state.get(f"module.{EXPONENTS}"))
    if tensor is None:
        return {}
    if tensor.shape == (2,) and tensor.is_floating_point():
        alpha, beta = tensor.tolist()
        if 0 <= alpha <= 1 and 0 <= beta <= 1:
            return {"alpha": alpha, "beta": beta}
    raise InputError(
        f"{EXPONENTS} of the panoptic checkpoint, {str(tensor.dtype)[6:]} {tuple(tensor.shape)}, are not two "
        "numbers in [0, 1]: fetch the file again"
    )


def full_state(model: OpenPanoptic, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A complete state dict of the model: a checkpoint's tensors, and the frozen ones as they are in the model.

    Args:
        model: an `OpenPanoptic`.
        state: tensors of a checkpoint under official names, with or without ``module.``, or those of
            ``model.state_dict()``.

    Raises:
        InputError: missing, unexpected or misshapen tensors; another variant or source; another CLIP.
    """
    given = {name.removeprefix("module."): value for name, value in state.items()}
    given = {name.removeprefix(GENERATOR): value for name, value in given.items()}
    wanted = trained_state(model)
    frozen = _frozen_names(model)
    _check_kind(model, given)
    _check_hashes(model, given)
    carried = carried_clip(model.clip, given)
    places = ["clip."] + ["branch_clip."] * (model.branch_clip is model.clip)
    taken = {place + name: t for place in places for name, t in carried.tensors.items()}
    read = {
        name: value
        for name, value in given.items()
        if name not in (*KEYS, EXPONENTS, *frozen)
        and not name.startswith(IGNORED)
        and not is_carried(name)
    }
    if problem := name_problem(wanted, read):
        raise InputError(f"the panoptic checkpoint {problem.what}: {problem.names}")
    of_clip = OF_CLIP + (OF_STAGES if isinstance(model.backbone, CLIPStages) else ())
    for name, target in wanted.items():
        if read[name].shape != target.shape:
            raise InputError(
                f"the panoptic checkpoint has {name} of shape {tuple(read[name].shape)}, the model needs "
                f"{tuple(target.shape)}: "
                + (
                    "MODEL.CLIP.NAME gives the size"
                    if any(part in name for part in of_clip)
                    else "MODEL.MASK_FORMER and MODEL.PYRAMID give the sizes"
                )
            )
    _check_numbers({n: t for n, t in read.items() if wanted[n].is_floating_point()})
    logger.info(
        "OpenPanoptic <- checkpoint: %d loaded, 0 missing, 0 unexpected, %d ignored; %d frozen tensors "
        "of CLIP and feature source are not in it and stay as they are",
        len(read),
        sum(name.startswith(IGNORED) for name in given),
        len(frozen) - len(taken),
    )
    if carried.report:
        logger.info("CLIP of the checkpoint: %s", carried.report)
    complete = dict(torch.nn.Module.state_dict(model))
    for name, value in read.items():
        complete[name if name in complete else GENERATOR + name] = value
    return complete | taken


def _check_numbers(read: Mapping[str, Tensor]) -> None:
    """Refuses weights of a generator that are no finite floating-point numbers."""
    for name, tensor in read.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            what = "NaN or infinite numbers" if tensor.is_floating_point() else "integers"
            raise InputError(
                f"the panoptic checkpoint has {what} in {name}: take one from before its training failed, or fetch "
                "it again"
            )


def trained_state(model: OpenPanoptic) -> dict[str, Tensor]:
    """Tensors that a checkpoint of an `OpenPanoptic` holds, all but the frozen ones, under official names."""
    frozen = _frozen_prefixes(model)
    return {
        name.removeprefix(GENERATOR): tensor
        for name, tensor in torch.nn.Module.state_dict(model).items()
        if not name.startswith(frozen)
    }


def _frozen_names(model: OpenPanoptic) -> set[str]:
    prefixes = _frozen_prefixes(model)
    return {name for name in torch.nn.Module.state_dict(model) if name.startswith(prefixes)}


def _frozen_prefixes(model: OpenPanoptic) -> tuple[str, ...]:
    inside = () if model.backbone is None else model.backbone.frozen_prefixes
    return ("clip.", "branch_clip.", *(f"backbone.{prefix}" for prefix in inside))


def frozen_hashes(model: OpenPanoptic) -> dict[str, str]:
    """Hashes of the weights that do not train, CLIP and the feature source's frozen part, by checkpoint entry."""
    hashes = {CLIP_HASH: model.clip.weights_hash()}
    state = torch.nn.Module.state_dict(model)
    if source := {n: state[n] for n in _frozen_names(model) if n.startswith("backbone.")}:
        hashes[SOURCE_HASH] = hash_tensors(source)
    return hashes


def _check_hashes(model: OpenPanoptic, given: Mapping[str, Tensor]) -> None:
    for entry, own in frozen_hashes(model).items():
        if entry in given and (trained_on := _digits(entry, given[entry])) != own:
            raise InputError(
                f"the panoptic checkpoint was trained on weights {trained_on}, the model has {own}: give "
                f"the former as {KEYS[entry]}"
            )


def _digits(entry: str, tensor: Tensor) -> str:
    """The hash in an entry, which is stored as the bytes of its digits."""
    if tensor.dtype == torch.uint8 and tensor.dim() == 1:
        with contextlib.suppress(UnicodeDecodeError):
            return bytes(tensor.tolist()).decode("ascii")
    raise InputError(
        f"{entry} of the panoptic checkpoint, {str(tensor.dtype)[6:]} {tuple(tensor.shape)}, is no hash: "
        "fetch the file again"
    )


def _check_kind(model: OpenPanoptic, given: Mapping[str, Tensor]) -> None:
    """Refuses a checkpoint of another kind of panoptic model, or of no panoptic model, by its kind."""
    if model.generator is None:
        raise InputError(
            f"MODEL.WEIGHTS is of no use with MODEL.MASK_GENERATOR.SOURCE {model.source}: leave it empty"
        )
    if not any(name.startswith("sem_seg_head.predictor.query_feat") for name in given):
        raise InputError(
            "this is no panoptic checkpoint: it has no mask generator; a CLIP belongs in "
            "MODEL.CLIP.WEIGHTS or MODEL.CLIP_BRANCH.WEIGHTS"
        )
    own = [*trained_state(model), *([CLIP] if isinstance(model.backbone, CLIPStages) else [])]
    for table, key in ((VARIANTS, "VARIANT"), (SOURCES, "SOURCE")):
        has, needs = (
            {k for p, k in table.items() if any(n.startswith(p) for n in names)}
            for names in (given, own)
        )
        if has and has != needs:
            raise InputError(
                f"this is a checkpoint of the {key} {'/'.join(sorted(has))}, the model's is "
                f"{'/'.join(sorted(needs))}: set MODEL.MASK_GENERATOR.{key} {min(has)}"
            )
