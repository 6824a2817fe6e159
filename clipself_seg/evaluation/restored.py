"""Borrowing a model for an evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def restored(model: Any, *names: str) -> Iterator[None]:
    """Give a model back with these attributes as they were, whatever happened to them."""
    before = {name: getattr(model, name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)
