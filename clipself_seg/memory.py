"""Setting of the memory allocator for long runs on the CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory(device: str = "cpu") -> None:
    """Tell glibc to hand back what is free now, and from now on no large block after every step.

    The activations of a step are then reused without page faults, which take a quarter of the time on a
    CPU. To be called once weights are loaded: what that needed would stay, too. Elsewhere than on glibc
    nothing happens.

    Args:
        device: of the model; on another one than "cpu" nothing happens either.
    """
    if sys.platform != "linux" or device != "cpu":
        return
    libc = ctypes.CDLL(None)
    mallopt, malloc_trim = (getattr(libc, name, None) for name in ("mallopt", "malloc_trim"))
    if mallopt is not None and malloc_trim is not None:
        malloc_trim(0)
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
