"""Tokenizers whose vocabulary is a file of its own: ``tokenizer.json``, or SentencePiece's ``tokenizer.model``.

The file is looked for where weights of the hub are (`checkpoints.locate.repositories`), in the cache of other programs
that use the hub, and then fetched from the repository of the model.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipself_seg.checkpoints.hub import HubName, hub_file
from clipself_seg.checkpoints.locate import repositories
from clipself_seg.errors import InputError, MissingPackage, in_short
from clipself_seg.files import require_regular_file

JSON = "tokenizer.json"
MODEL = "tokenizer.model"
LARGEST = 1 << 26  # bytes of a file: a vocabulary of 256,000 has 34 million
Encode = Callable[[str], list[int]]


class FileTokenizer:
    """Token ids of texts by a vocabulary out of a file, filled up with padding behind their end."""

    def __init__(self, encode: Encode, padding: int = 0) -> None:
        """
        Args:
            encode: token ids of a text, with those that the model wants around them.
            padding: id that shorter texts are filled up with.
        """
        self.encode = encode
        self.padding = padding

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor:
        """Token ids (K, context_length) int64 of K texts; longer texts are cut."""
        ids_KT = torch.full((len(texts), context_length), self.padding)
        for row_T, text in zip(ids_KT, texts):
            ids = self.encode(text)[:context_length]
            row_T[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        return ids_KT

    def count(self, text: str) -> int:
        """Number of tokens of a text, however long it is."""
        return len(self.encode(text))


def repository_tokenizer(
    repository: str, *, vocabulary: int, padding: int = 0, added: bool = True
) -> FileTokenizer:
    """The tokenizer of a repository of the hub; it is read once.

    Args:
        repository: "org/name".
        vocabulary: number of ids that the text tower knows.
        padding: id that shorter texts are filled up with.
        added: as for `read_tokenizer`.

    Raises:
        InputError: no file of it is on this machine or can be fetched, with where to put it; or as `read_tokenizer`.
    """
    path = _file_of(repository)
    return read_tokenizer(path, vocabulary=vocabulary, padding=padding, added=added)


def read_tokenizer(
    path: str | os.PathLike[str], *, vocabulary: int, padding: int = 0, added: bool = True
) -> FileTokenizer:
    """The tokenizer of a file, which is read again only when it has changed.

    Args:
        path: a ``tokenizer.json``, which needs the package tokenizers, or a ``tokenizer.model`` of SentencePiece,
            which needs sentencepiece and is given lower-cased texts.
        vocabulary: number of ids that the text tower knows.
        padding: id that shorter texts are filled up with.
        added: whether a ``tokenizer.json`` puts the tokens around a text that it says; SentencePiece puts none.

    Raises:
        InputError: it is none or damaged, or has other ids than the text tower.
        MissingPackage: the package that reads it is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no tokenizer at {path}: give a {JSON} or a {MODEL}")
    require_regular_file(path)
    status = path.stat()
    if status.st_size > LARGEST:
        raise InputError(
            f"{path} has {status.st_size} bytes, more than any tokenizer: give the {JSON} or {MODEL} of the model"
        )
    return _read(path, vocabulary, padding, added, status.st_mtime_ns)


def _file_of(repository: str) -> Path:
    """The first of a repository's files that is there or can be fetched."""
    reasons: list[InputError] = []
    for file in (JSON, MODEL):
        try:
            return hub_file(HubName(repository, file=file), repositories())
        except InputError as error:
            reasons.append(error)
    raise reasons[0]


@functools.lru_cache(maxsize=8)
def _read(path: Path, vocabulary: int, padding: int, added: bool, changed: int) -> FileTokenizer:
    encode, size = _read_model(path) if path.suffix == ".model" else _read_json(path, added)
    if size > vocabulary:
        raise InputError(
            f"{path} has {size} tokens, the text tower knows {vocabulary}: give the tokenizer of this model"
        )
    return FileTokenizer(encode, padding)


def _read_json(path: Path, added: bool) -> tuple[Encode, int]:
    tokenizers = _package("tokenizers", path)
    text = path.read_text(encoding="utf-8", errors="replace")
    tokenizer = _checked(path, lambda: tokenizers.Tokenizer.from_str(text))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(text: str) -> list[int]:
        return list(_checked(path, lambda: tokenizer.encode(text, add_special_tokens=added)).ids)

    return encode, max(tokenizer.get_vocab().values(), default=-1) + 1


def _read_model(path: Path) -> tuple[Encode, int]:
    package = _package("sentencepiece", path)
    content = path.read_bytes()
    model = _checked(path, lambda: package.SentencePieceProcessor(model_proto=content))
    return (lambda text: list(model.encode(text.lower()))), model.get_piece_size()


def _checked(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives, or an `InputError` for whatever a package says of a damaged file."""
    try:
        return read()
    except BaseException as error:  # a panic of the package tokenizers is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise InputError(
            f"{path} is no tokenizer ({in_short(error)}): fetch it again, or give the one of this model"
        ) from None


def _package(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise MissingPackage(
            f'{name} is not installed, and {path} needs it: pip install "clipself_seg[tokenizers]"'
        ) from None
