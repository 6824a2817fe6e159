"""Texts -> token ids, by what each kind of CLIP was trained with.

CLIP's byte pairs are open_clip's, read without importing open_clip: that takes seconds, since it brings torchvision,
timm and, where they are installed, transformers. Other vocabularies are a file of their own, ``tokenizer.json`` or
SentencePiece's ``tokenizer.model``. It is looked for in the folder of weights and in
the cache of other programs that use the hub, and then fetched from the repository of the model (`checkpoints.locate`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from clipself_seg.checkpoints.locate import hub_file
from clipself_seg.checkpoints.needs import open_clip_folder, tokenizer_files
from clipself_seg.errors import InputError, in_short, of_extra
from clipself_seg.files import require_regular_file

WORDS = 1 << 16  # that are kept with their ids
LARGEST = 1 << 26  # bytes of a file: a vocabulary of 256,000 has 34 million
Encode = Callable[[str], list[int]]
T = TypeVar("T")


@dataclass(eq=False)
class Tokenizer:
    """Token ids of texts, filled up with padding behind their end.

    Attributes:
        encode: token ids of a text, with those that the model wants around them.
        padding: id that shorter texts are filled up with.
        end: id that longer texts end with, too, where they are cut; None to cut them as they are.
    """

    encode: Encode
    padding: int = 0
    end: int | None = None

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor:
        """Token ids (K, context_length) int64 of K texts; longer texts are cut."""
        ids_KT = torch.full((len(texts), context_length), self.padding)
        for row_T, text in zip(ids_KT, texts):
            ids = self.encode(text)[:context_length]
            row_T[: len(ids)] = torch.tensor(ids, dtype=torch.long)
            if self.end is not None and len(ids) == context_length:
                row_T[-1] = self.end
        return ids_KT

    def count(self, text: str) -> int:
        """Number of tokens of a text, with those that mark its start and end, however long it is."""
        return len(self.encode(text))


class ClipTokenizer(Tokenizer):
    """CLIP's byte pairs, with a start and an end token: open_clip's `SimpleTokenizer`."""

    def __init__(self) -> None:
        module = open_clip_tokenizer()
        # The module makes one for itself, which takes a while.
        self._pairs = getattr(module, "_tokenizer", None) or module.SimpleTokenizer()
        self._word = functools.lru_cache(WORDS)(self._pairs.encode)
        super().__init__(self._encode, end=self._pairs.eot_token_id)

    def _encode(self, text: str) -> list[int]:
        """Token ids, equal to open_clip's; those of words that need no mending are kept: sentences share most words."""
        if text.isascii() and text.isprintable() and "&" not in text:  # & begins an entity of HTML
            ids = [index for word in text.split() for index in self._word(word)]
        else:
            ids = self._pairs.encode(text)
        return [self._pairs.sot_token_id, *ids, self._pairs.eot_token_id]

    def to_json(self) -> str:
        """The same as a ``tokenizer.json``, which the package tokenizers reads without torch."""
        content = json.loads(Path(__file__).with_name("byte_pairs.json").read_text("utf-8"))
        content["model"]["vocab"] = self._pairs.encoder
        content["model"]["merges"] = [list(pair) for pair in self._pairs.bpe_ranks]
        return json.dumps(content)


@functools.cache
def clip_tokenizer() -> Tokenizer:
    """The tokenizer of OpenAI's CLIP and of everything with its text tower."""
    return ClipTokenizer()


@functools.cache
def open_clip_tokenizer() -> ModuleType:
    """open_clip's module of that name, alone where open_clip has not been imported."""
    name = "open_clip.tokenizer"
    path = open_clip_folder() / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("_tokenizer_alone", path)
    if name in sys.modules or spec is None or spec.loader is None:
        return importlib.import_module(name)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError:  # a version whose file is not for itself
        return importlib.import_module(name)
    return module


def repository_tokenizer(
    repository: str, *, vocabulary: int, padding: int = 0, added: bool = True
) -> Tokenizer:
    """The tokenizer of a repository of the hub, by a file that is on this machine, or the first that can be fetched.

    Args:
        repository: "org/name".
        vocabulary, padding, added: as for `read_tokenizer`.

    Raises:
        InputError: no file of it is on this machine or can be fetched, with where to put it; or as `read_tokenizer`.
    """
    reasons: list[InputError] = []
    for name in tokenizer_files(repository):
        try:
            path = hub_file(name)
        except InputError as error:
            reasons.append(error)
            continue
        return read_tokenizer(path, vocabulary=vocabulary, padding=padding, added=added)
    raise reasons[0]


def read_tokenizer(
    path: str | os.PathLike[str], *, vocabulary: int, padding: int = 0, added: bool = True
) -> Tokenizer:
    """The tokenizer of a file, which is read again only when it has changed.

    Args:
        path: a ``tokenizer.json``, which needs the package tokenizers, or a ``tokenizer.model`` of SentencePiece,
            which needs sentencepiece and is given lower-cased texts.
        vocabulary: number of ids that the text tower knows.
        padding: id that shorter texts are filled up with.
        added: True if a ``tokenizer.json`` puts the tokens around a text that it says; SentencePiece puts none.

    Raises:
        InputError: it is none or damaged, or has other ids than the text tower.
        MissingPackage: the package that reads it is not installed.
    """
    path = Path(path)
    require_regular_file(path)
    status = path.stat()
    if status.st_size > LARGEST:
        raise InputError(
            f"{path} has {status.st_size} bytes, more than any tokenizer: give the tokenizer of the model"
        )
    encode, size = _read(path, added, status.st_mtime_ns)
    if size > vocabulary:
        raise InputError(
            f"{path} has {size} tokens, the text tower knows {vocabulary}: give the tokenizer of this model"
        )
    return Tokenizer(encode, padding)


@functools.lru_cache(maxsize=8)
def _read(path: Path, added: bool, changed: int) -> tuple[Encode, int]:
    """Encoder of a tokenizer file and its number of ids, kept until the file has changed."""
    return _read_model(path) if path.suffix == ".model" else _read_json(path, added)


def _read_json(path: Path, added: bool) -> tuple[Encode, int]:
    package = of_extra("tokenizers", str(path), "tokenizers")
    text = path.read_text(encoding="utf-8", errors="replace")
    tokenizer = _checked(path, lambda: package.Tokenizer.from_str(text))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(text: str) -> list[int]:
        return list(_checked(path, lambda: tokenizer.encode(text, add_special_tokens=added)).ids)

    return encode, max(tokenizer.get_vocab().values(), default=-1) + 1


def _read_model(path: Path) -> tuple[Encode, int]:
    package = of_extra("sentencepiece", str(path), "tokenizers")
    content = path.read_bytes()
    model = _checked(path, lambda: package.SentencePieceProcessor(model_proto=content))
    return (lambda text: list(model.encode(text.lower()))), model.get_piece_size()


def _checked(path: Path, read: Callable[[], T]) -> T:
    """Returns what `read` returns; raises an `InputError` for any error of a package about a damaged file."""
    try:
        return read()
    except BaseException as error:  # a panic of the package tokenizers is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise InputError(
            f"{path} is no tokenizer ({in_short(error)}): fetch it again, or give the one of this model"
        ) from None
