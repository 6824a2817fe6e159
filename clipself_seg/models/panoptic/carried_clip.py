"""The CLIP within checkpoints of FC-CLIP, below ``backbone.clip_model.``: compared with the model's, or loaded.

FC-CLIP froze it, so that what a file has of it has to be what the model has; the released ConvNeXt-L has no whole text
tower. Successors that tuned the image tower (OVRCOAT, MAFT+) keep a frozen twin of it beside, by which they are known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.signatures import signature_of
from clipself_seg.clip.weights import to_native
from clipself_seg.errors import InputError

CLIP = "backbone.clip_model."
# The frozen copies, which no output depends on.
TWINS: tuple[str, ...] = ("frozen_backbone.", "backbone_t.")
# MAFT+: texts that attend to the image.
ATTENDING_TEXTS = "cdt."
# Largest difference of weights that were stored in half precision once.
ROUNDING = 2e-3


@dataclasses.dataclass(frozen=True)
class CarriedClip:
    """The tensors of a checkpoint's CLIP that replace the model's, and a report.

    Attributes:
        tensors: those that replace the model's, under native names without a prefix.
        report: what there was and what became of it, in words; "" if there was nothing.
    """

    tensors: dict[str, Tensor]
    report: str


def is_carried(name: str) -> bool:
    """Whether a tensor of a checkpoint is of a CLIP or of its twin."""
    return name.startswith((CLIP, *TWINS))


def carried_clip(clip: DenseCLIP, given: Mapping[str, Tensor]) -> CarriedClip:
    """Compares the CLIP in a checkpoint with a model's, and says what of it the model takes.

    Without weights of its own the model takes a whole CLIP. If the checkpoint has a frozen twin, its image tower was
    tuned and is taken. Otherwise nothing is, and all has to agree.

    Args:
        clip: the model's CLIP.
        given: tensors of the checkpoint by name, without ``module.``.

    Raises:
        InputError: it is another CLIP, or none that is whole where one is needed; or a twin without a tuned tower; or
            it is MAFT+'s, whose texts are not those of a text tower alone.
    """
    if any(name.startswith(ATTENDING_TEXTS) for name in given):
        raise InputError(
            f"the panoptic checkpoint is MAFT+'s ({ATTENDING_TEXTS}*): its texts attend to each image, in a layer "
            "whose tensors this project cannot name for sure, and without it they would be others; take FC-CLIP's or "
            "OVRCOAT's"
        )
    own = clip.state_dict()
    carried = to_native(
        {name.removeprefix(CLIP): t for name, t in given.items() if name.startswith(CLIP)}
    )
    twin = [name for name in given if name.startswith(TWINS)]
    ignored = f"; ignored: {len(twin)} of the frozen twin {twin[0].split('.')[0]}" if twin else ""
    if twin and not any(name.startswith("visual.") for name in carried):
        raise InputError(
            f"the panoptic checkpoint has a frozen twin ({twin[0]}), so that its image tower was tuned, and lacks that "
            f"({CLIP}visual.*): give the whole file"
        )
    if not carried:
        return CarriedClip({}, ignored.removeprefix("; "))
    _check_model(clip, own, carried)
    image = {name for name in own if name.startswith("visual.")}
    has_image = image <= carried.keys()
    if clip.report is None:
        _require_whole(clip, own, carried)
        return CarriedClip(carried, f"all {len(own)} tensors of CLIP are the checkpoint's{ignored}")
    taken = {n: carried[n] for n in (*image, "logit_scale") if n in carried} if twin else {}
    _require_equal(clip, own, {n: t for n, t in carried.items() if n not in taken})
    what = f"image tower of the checkpoint, {len(image)} tensors tuned by its training"
    if not taken:
        what = f"image tower of MODEL.CLIP.WEIGHTS, {'which' if has_image else 'not in the checkpoint'}"
        what += f" the checkpoint's {len(image)} tensors agree with" if has_image else ""
    texts = [name for name in own if name.startswith("text.")]
    there = sum(name in carried for name in texts)
    text = f"text tower of MODEL.CLIP.WEIGHTS, of which the checkpoint has {there} of {len(texts)} tensors"
    return CarriedClip(taken, f"{what}; {text}{ignored}")


def _check_model(clip: DenseCLIP, own: Mapping[str, Tensor], carried: Mapping[str, Tensor]) -> None:
    """Refuses tensors of another architecture, or a part of an image tower."""
    signature = signature_of(carried)
    if signature is not None and signature != clip.architecture.signature:
        raise InputError(
            f"the panoptic checkpoint is of another CLIP: its image tower is {signature}, that of MODEL.CLIP.NAME "
            f"{clip.name} is {clip.architecture.signature}"
        )
    wrong = [n for n, t in carried.items() if n not in own or own[n].shape != t.shape]
    image = [name for name in own if name.startswith("visual.")]
    absent = [name for name in image if name not in carried]
    if len(absent) < len(image):
        wrong += absent
    if wrong:
        raise InputError(
            f"the panoptic checkpoint's CLIP is not {clip.name}, or not whole: {_first(wrong)} missing, unexpected or "
            "of another shape; MODEL.CLIP.NAME gives the sizes"
        )
    if broken := [name for name, tensor in carried.items() if not tensor.isfinite().all()]:
        raise InputError(
            f"the panoptic checkpoint's CLIP has numbers that are not finite: {_first(broken)}; fetch the file again"
        )


def _require_whole(
    clip: DenseCLIP, own: Mapping[str, Tensor], carried: Mapping[str, Tensor]
) -> None:
    if absent := [name for name in own if name not in carried]:
        raise InputError(
            f"MODEL.CLIP.WEIGHTS is empty, and the panoptic checkpoint lacks {len(absent)} tensors of {clip.name} "
            f"({_first(absent)}): give the weights that it was trained on, such as open_clip's tag of them"
        )


def _require_equal(
    clip: DenseCLIP, own: Mapping[str, Tensor], carried: Mapping[str, Tensor]
) -> None:
    other = [
        name
        for name, tensor in carried.items()
        if not torch.allclose(tensor.to(own[name]), own[name], atol=ROUNDING, rtol=ROUNDING)
    ]
    if other:
        raise InputError(
            f"MODEL.CLIP.WEIGHTS is not the {clip.name} that the panoptic checkpoint was trained on: {len(other)} "
            f"tensors differ ({_first(other)}); give the weights that it was trained on"
        )


def _first(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
