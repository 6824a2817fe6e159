"""Setting of the memory allocator for long runs on the CPU, and a rest for Python's garbage collector."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory(device: str = "cpu") -> None:
    """Tells glibc to hand back what is free now, and from now on no large block after every step.

    The activations of a step are then reused without page faults, which take a quarter of the time on a
    CPU. To be called once weights are loaded: what that needed would stay, too. Elsewhere than on glibc
    nothing happens.

    Args:
        device: of the model; on another one than "cpu" nothing happens either.
    """
    if device == "cpu":
        set_thresholds(1 << 30, (1 << 31) - 1)


def set_thresholds(mmap: int, trim: int) -> None:
    """Hands back what is free; blocks from `mmap` bytes on are then the system's, and free memory above `trim`."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    mallopt, malloc_trim = (getattr(libc, name, None) for name in ("mallopt", "malloc_trim"))
    if mallopt is not None and malloc_trim is not None:
        malloc_trim(0)
        mallopt(M_MMAP_THRESHOLD, mmap)
        mallopt(M_TRIM_THRESHOLD, trim)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Lets Python's search for unreachable cycles wait, for much that has none: a large JSON, modules."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
