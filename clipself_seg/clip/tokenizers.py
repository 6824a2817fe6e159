"""Texts -> token ids, by what each kind of CLIP was trained with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from clipself_seg.clip import open_clip_files


class Tokenizer(Protocol):
    """The interface of tokenizers."""

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor:
        """Token ids (K, context_length) int64 of K texts; longer texts are cut."""
        ...

    def count(self, text: str) -> int:
        """Number of tokens of a text, with those that mark its start and end, however long it is."""
        ...


class ClipTokenizer:
    """CLIP's byte pairs, with a start and an end token: open_clip's `SimpleTokenizer`."""

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor:
        """Token ids (K, context_length) int64 of K texts; longer texts are cut."""
        ids: Tensor = open_clip_files.tokenizer()(list(texts), context_length)
        return ids

    def count(self, text: str) -> int:
        """Number of tokens of a text, start and end included."""
        return len(open_clip_files.tokenizer().encode(text)) + 2


@functools.cache
def clip_tokenizer() -> Tokenizer:
    """The tokenizer of OpenAI's CLIP and of everything with its text tower."""
    return ClipTokenizer()
