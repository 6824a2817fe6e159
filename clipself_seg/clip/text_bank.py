"""Vocabularies -> class embeddings, computed once for each set of words, templates and weights.

Shapes: K classes, E embedding.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from clipself_seg.checkpoints.hashes import checksums, hash_tensors
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.clip.model import DenseCLIP
from clipself_seg.clip.precision import full_precision
from clipself_seg.clip.prompts import TEMPLATES, class_prompts
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError, nearest
from clipself_seg.files import atomic_path

BATCH = 256  # prompts encoded together
# Part of every key: entries of version 1 may hold low precision, or the rows of other weights.
VERSION = 2


def default_cache_dir() -> Path:
    """``$CLIPSELF_SEG_CACHE``, else ``~/.cache/clipself_seg``."""
    return Path(os.environ.get("CLIPSELF_SEG_CACHE", Path.home() / ".cache" / "clipself_seg"))


class TextBank:
    """Class embeddings of a CLIP's text tower: prompts encoded, normalised, averaged, normalised.

    Embeddings are kept in memory and on disk under a key made of the text tower's weights and the
    sentences, so words, templates or weights that change never meet a stale embedding. What is kept
    is the same whoever asks first: encoded without autocast, inference mode and gradients.
    """

    def __init__(
        self,
        clip: DenseCLIP,
        templates: str = "vild63",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """
        Args:
            clip: the model whose text tower is asked.
            templates: a name in `prompts.TEMPLATES`.
            cache_dir: folder of the disk cache; None for `default_cache_dir`.
        """
        if templates not in TEMPLATES:
            raise InputError(f'no prompt templates "{templates}"; {nearest(templates, TEMPLATES)}')
        self.clip, self.templates = clip, templates
        self.cache_dir = Path(cache_dir) if cache_dir is not None else default_cache_dir() / "text"
        self._memory: dict[str, Tensor] = {}
        self._hashed: tuple[tuple[int, ...], str] | None = None

    def embed(self, words: Vocabulary | str | Sequence[str | Sequence[str]]) -> Tensor:
        """Unit vectors (K, E) on the model's device; a class with synonyms gets the mean of theirs.

        Args:
            words: a vocabulary, or for each class a name or a sequence of synonyms; one string is one
                class. Classes may come twice: their rows are equal.

        Raises:
            InputError: no class, one without names, or a name that is no string.
        """
        classes = _as_synonyms(words)
        if not classes:
            raise InputError("the vocabulary is empty; give at least one class name")
        return self._kept(self._key(classes), lambda: self._compute(classes))

    def embed_raw(self, names: Sequence[str], keep: bool = True) -> Tensor:
        """Embeddings (S, E) of S names, not normalised; the templates have to be one sentence.

        Args:
            names: S.
            keep: in memory and on disk. False is for names that will not come again together, such as
                those of a training step: every step would leave a file.
        """
        if len(TEMPLATES[self.templates]) != 1:
            raise ValueError(
                f'"{self.templates}" has several sentences, which only unit vectors average'
            )
        if not keep:
            return self._encode(list(names)).to(self.clip.logit_scale.device)
        return self._kept(self._key([tuple(names)], "raw"), lambda: self._encode(list(names)))

    def _kept(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """From memory, else from disk, else computed now."""
        if key not in self._memory:
            with self._whoever_asks():
                stored = self._from_disk(key)
                self._memory[key] = compute() if stored is None else stored
            if stored is None:
                self._to_disk(key)
        # A copy: what a caller does to it stays with the caller.
        return self._memory[key].to(self.clip.logit_scale.device, copy=True)

    @contextlib.contextmanager
    def _whoever_asks(self) -> Iterator[None]:
        """Nothing of the caller's modes: low precision or inference tensors would reach the next one."""
        with torch.inference_mode(False), torch.no_grad():
            with full_precision(self.clip.logit_scale.device):
                yield

    def _compute(self, classes: list[tuple[str, ...]]) -> Tensor:
        names = list(dict.fromkeys(name for synonyms in classes for name in synonyms))
        rows = dict(zip(names, self._encode_names(names)))
        means = [torch.stack([rows[name] for name in synonyms]).mean(0) for synonyms in classes]
        return F.normalize(torch.stack(means), dim=-1)

    def _encode_names(self, names: list[str]) -> Tensor:
        """Unit vectors, the mean of each name's sentences."""
        units = F.normalize(self._encode(names), dim=-1)
        return F.normalize(units.view(len(names), -1, self.clip.embed_dim).mean(1), dim=-1)

    @torch.no_grad()
    def _encode(self, names: list[str]) -> Tensor:
        """Of every sentence of every name, not normalised, (names x sentences, E) on the CPU."""
        prompts = [prompt for name in names for prompt in class_prompts(name, self.templates)]
        tokens = self.clip.tokenize(prompts)
        # Prompts of like length side by side: the text tower cuts a batch at its longest text.
        order = tokens.argmax(dim=-1).argsort(stable=True)
        device = self.clip.logit_scale.device
        encoded = torch.empty(len(prompts), self.clip.embed_dim)
        for batch in _batches(order):
            encoded[batch] = self.clip.text(tokens[batch].to(device)).float().cpu()
        return encoded

    def _key(self, classes: list[tuple[str, ...]], *more: str) -> str:
        prompts = [[class_prompts(name, self.templates) for name in names] for names in classes]
        facts = json.dumps([VERSION, self._weights(), prompts, *more])
        return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()

    def _weights(self) -> str:
        """Hash of the text tower, recomputed only after a bit of it changed.

        Checksums, a fifth of the hash's time, tell that.
        """
        state = self.clip.text.state_dict()
        sums = checksums(state.values())
        if self._hashed is None or self._hashed[0] != sums:
            self._hashed = sums, hash_tensors(state) + str(self.clip.quick_gelu)
        return self._hashed[1]

    def _path(self, key: str) -> Path:
        return self.cache_dir / f"{key}.safetensors"

    def _from_disk(self, key: str) -> Tensor | None:
        try:
            return read_checkpoint(self._path(key)).tensors["text"]
        except (InputError, KeyError):  # a damaged cache entry is made again
            return None

    def _to_disk(self, key: str) -> None:
        import safetensors.torch

        try:
            with atomic_path(self._path(key)) as temporary:
                safetensors.torch.save_file({"text": self._memory[key]}, temporary)
        except OSError:  # a read-only or full disk costs the next run some time, no more
            return


def _as_synonyms(words: Vocabulary | str | Sequence[str | Sequence[str]]) -> list[tuple[str, ...]]:
    if isinstance(words, str):
        words = [words]
    if isinstance(words, Vocabulary):
        return [tuple(entry.names) for entry in words.classes]
    return [_synonyms(index, word) for index, word in enumerate(words)]


def _synonyms(index: int, word: str | Sequence[str]) -> tuple[str, ...]:
    names = (word,) if isinstance(word, str) else tuple(word) if isinstance(word, Iterable) else ()
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(
            f"class {index} of the vocabulary is {word!r:.80}; give a name, or at least one in a list "
            "of synonyms"
        )
    return names


def _batches(order: Tensor) -> Iterator[Tensor]:
    batches = order.split(BATCH)
    yield from tqdm(batches, desc="encode text", unit="batch", disable=len(batches) < 20)
