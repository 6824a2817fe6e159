"""Which CLIP image tower a state dict holds, by names and shapes that only its kind has."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from clipself_seg.clip.build import Signature

# What tells the kind and the sizes of an image tower, with the number of dimensions.
TELLING: dict[str, dict[str, int]] = {
    "EVA ViT": {"visual.patch_embed.proj.weight": 4, "visual.head.weight": 2},
    "OpenAI ViT": {"visual.class_embedding": 1, "visual.proj": 2, "visual.conv1.weight": 4},
    "ResNet": {
        "visual.layer4.0.conv1.weight": 4,
        "visual.attnpool.c_proj.weight": 2,
        "visual.conv3.weight": 4,
    },
}


def signature_of(tensors: Mapping[str, Tensor]) -> Signature | None:
    """The architecture that native names and shapes belong to, or None where there is no image tower."""
    for kind, telling in TELLING.items():
        if any(n not in tensors or tensors[n].dim() != rank for n, rank in telling.items()):
            continue
        shapes = [tensors[name].shape for name in telling]
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
    pattern = re.compile(rf"visual\.{re.escape(stack)}\.(\d+)\.")
    found = {match.group(1) for name in tensors if (match := pattern.match(name))}
    return len(found)


def first_gap(tensors: Mapping[str, Tensor]) -> str:
    """Why `signature_of` finds nothing, by the kind of tower that most of the names belong to.

    Args:
        tensors: under native names, of no known architecture.
    """
    kind = max(TELLING, key=lambda kind: sum(name in tensors for name in TELLING[kind]))
    if not any(name in tensors for name in TELLING[kind]):
        return f"it starts with {', '.join(list(tensors)[:3])}"
    name, rank = next(
        (n, r) for n, r in TELLING[kind].items() if n not in tensors or tensors[n].dim() != r
    )
    found = tuple(tensors[name].shape) if name in tensors else "missing"
    return f"{kind} has {name} of {rank} dimensions, here it is {found}"
