"""Recognises the CLIP image tower of a state dict by names and shapes that only its kind has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from clipself_seg.clip.kind import Signature, TowerKind
from clipself_seg.clip.kinds import KINDS


def signature_of(tensors: Mapping[str, Tensor]) -> Signature | None:
    """Signature of the image tower among tensors under native names, or None without image tower."""
    for kind in KINDS.values():
        if _gap(kind, tensors) is None:
            return kind.signature(kind.read_sizes(tensors))
    return None


def first_gap(tensors: Mapping[str, Tensor]) -> str:
    """Reason why `signature_of` returns None, for the kind of tower that most of the names belong to.

    Args:
        tensors: tensors of no known architecture, under native names.
    """
    kind = max(KINDS.values(), key=lambda kind: sum(name in tensors for name in kind.key_tensors))
    if not any(name in tensors for name in kind.key_tensors):
        return f"it starts with {', '.join(list(tensors)[:3])}"
    name = _gap(kind, tensors)
    assert name is not None
    actual = tuple(tensors[name].shape) if name in tensors else "missing"
    return f"{kind.name} has {name} of {kind.key_tensors[name]} dimensions, here it is {actual}"


def _gap(kind: TowerKind, tensors: Mapping[str, Tensor]) -> str | None:
    """The first key tensor of a kind that is missing or of other dimensions."""
    wanted = kind.key_tensors.items()
    return next((n for n, r in wanted if n not in tensors or tensors[n].dim() != r), None)
