"""Recognises the CLIP image tower of a state dict by names and shapes that only its kind has."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from clipself_seg.clip.build import Signature

# Tensors that identify the kind and the sizes of an image tower, with their numbers of dimensions.
KEY_TENSORS: dict[str, dict[str, int]] = {
    "EVA ViT": {"visual.patch_embed.proj.weight": 4, "visual.head.weight": 2},
    "OpenAI ViT": {"visual.class_embedding": 1, "visual.proj": 2, "visual.conv1.weight": 4},
    "ResNet": {
        "visual.layer4.0.conv1.weight": 4,
        "visual.attnpool.c_proj.weight": 2,
        "visual.conv3.weight": 4,
    },
}


def signature_of(tensors: Mapping[str, Tensor]) -> Signature | None:
    """Signature of the image tower among tensors under native names, or None without image tower."""
    for kind, ranks in KEY_TENSORS.items():
        if any(n not in tensors or tensors[n].dim() != rank for n, rank in ranks.items()):
            continue
        shapes = [tensors[name].shape for name in ranks]
        if kind == "ResNet":
            layers = sum(_count(tensors, f"layer{stage}") for stage in (1, 2, 3, 4))
            return Signature(kind, shapes[2][0], layers, 32, shapes[1][0])
        if kind == "EVA ViT":
            kernel, (embed_dim, _) = shapes
            layers = _count(tensors, "blocks")
        else:
            _, (_, embed_dim), kernel = shapes
            layers = _count(tensors, "transformer.resblocks")
        return Signature(kind, kernel[0], layers, kernel[-1], embed_dim)
    return None


def _count(tensors: Mapping[str, Tensor], stack: str) -> int:
    """Number of blocks of a stack, such as ``blocks`` or ``layer1``."""
    pattern = re.compile(rf"visual\.{re.escape(stack)}\.(\d+)\.")
    return len({match.group(1) for name in tensors if (match := pattern.match(name))})


def first_gap(tensors: Mapping[str, Tensor]) -> str:
    """Reason why `signature_of` returns None, for the kind of tower that most of the names belong to.

    Args:
        tensors: tensors of no known architecture, under native names.
    """
    kind = max(KEY_TENSORS, key=lambda kind: sum(name in tensors for name in KEY_TENSORS[kind]))
    if not any(name in tensors for name in KEY_TENSORS[kind]):
        return f"it starts with {', '.join(list(tensors)[:3])}"
    name, rank = next(
        (n, r) for n, r in KEY_TENSORS[kind].items() if n not in tensors or tensors[n].dim() != r
    )
    actual = tuple(tensors[name].shape) if name in tensors else "missing"
    return f"{kind} has {name} of {rank} dimensions, here it is {actual}"
