"""The device that computes: what MODEL.DEVICE and --device name, and what is on this machine."""

from __future__ import annotations

import torch

from clipself_seg.errors import InputError

PATTERN = r"auto|cpu|mps|cuda(:\d+)?"
WANTED = '"auto", "cpu", "mps", "cuda" or "cuda:" with a number'


def is_here(name: str) -> bool:
    """True if this machine, and torch on it, have a device of this name."""
    kind, _, number = name.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return int(number or 0) < count
    return kind != "mps" or torch.backends.mps.is_available()


def chosen_device(name: str) -> str:
    """The device itself: for "auto" the first of cuda, mps and cpu that is here."""
    return name if name != "auto" else next(filter(is_here, ("cuda", "mps", "cpu")))


def require_device(name: str) -> None:
    """Refuses a device that was typed and is not on this machine; what is no device the configuration refuses.

    Raises:
        InputError: names what torch sees.
    """
    if name.partition(":")[0] in ("cuda", "mps") and not is_here(name.rstrip(":")):
        raise InputError(
            f"--device {name}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA device(s) here, "
            f"numbered from 0, and {'mps' if is_here('mps') else 'no mps'}: give another one, or --device cpu"
        )
