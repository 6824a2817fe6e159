"""A lever: a way to compute that some processors gain by, in place of torch's own.

`linear.CONVOLUTION` makes convolutions of linear layers, `layers.ATTENTION` lets oneDNN multiply inside of torch's
attention over many tokens. The processor decides, not a stopwatch: the same machine always gives the same bits, unless
several threads predict at once. One that is not known keeps torch's own way, and so does a machine where the test at
the first use fails, for instance because a name of torch's is gone.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import platform
import re
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from clipself_seg.provenance import cpu_info

logger = logging.getLogger(__name__)

LARGEST_ERROR = 2e-6  # of a test's result, relative: float32 has 5e-7, bfloat16 2e-3

stock: ContextVar[bool] = ContextVar("stock", default=False)  # True inside of `stock_products`


@contextlib.contextmanager
def stock_products() -> Iterator[None]:
    """Makes all products torch's own inside the context, for benchmarks of the plain formulations and for exports."""
    token = stock.set(True)
    try:
        yield
    finally:
        stock.reset(token)


@functools.cache
def processor() -> str:
    """The system's description of its processor, on Linux with family and flags."""
    return platform.processor() + cpu_info()


@functools.cache
def amd_family() -> int:
    """Family of AMD's processors that this one is of (Zen 4 is 25, Zen 5 is 26); 0 where the system does not say."""
    match = re.search(r"AuthenticAMD\ncpu family\s*: (\d+)", processor())
    return int(match[1]) if match else 0


class Lever:
    """One such way: the processors that gain by it, a test of its result, and a setting of torch's that it needs."""

    def __init__(
        self,
        suits: Callable[[], bool],
        results: Callable[[], tuple[Tensor, Tensor]],
        setting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """
        Args:
            suits: True if this processor gains by it; False for one that is not known.
            results: a result of this way, and the exact one.
            setting: makes a context in which torch's setting for all threads is as this way needs it.
        """
        self._suits = suits
        self._results = results
        self._setting = setting

    @functools.cached_property
    def chosen(self) -> bool:
        """True if the processor gains by it, and a test has no larger error than `LARGEST_ERROR`."""
        if not self._suits():
            return False
        # In a thread of its own: what watches this one's operators, such as a checkpoint, must not see the test.
        # No pool: those begin no thread any more once the main one has ended.
        results: list[bool] = []
        thread = threading.Thread(target=lambda: results.append(self._exact()))
        thread.start()
        thread.join()
        return results == [True]

    def _exact(self) -> bool:
        try:
            with torch.no_grad(), torch.autocast("cpu", enabled=False), self._setting():
                result, exact = self._results()
        except (AttributeError, RuntimeError, TypeError) as problem:
            logger.warning(
                "products are slower than need be: torch %s: %s", torch.__version__, problem
            )
            return False
        return bool((result - exact).norm() <= LARGEST_ERROR * exact.norm())

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Sets torch's setting inside the context where it is `chosen`, and not inside of `stock_products`.

        What another thread computes meanwhile is computed this way, too: in float32, with other last digits. The
        setting comes back when the last thread has left.
        """
        with contextlib.nullcontext() if stock.get() or not self.chosen else self._setting():
            yield
