"""Class names -> prompts -> text embeddings, computed once for each set of names, templates and weights.

The sentences are in `templates.py`. `TextBank` is for a CLIP that never changes, and keeps embeddings on disk too;
`ClassTexts` has one embedding for each template, with gradients where the text tower trains. Both are `Texts`, which
are kept in memory.

Shapes: K classes, P prompts of a class, E embedding.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from clipself_seg.checkpoints.bounds import OutOfBounds, open_safetensors
from clipself_seg.checkpoints.hashes import hash_tensors, weights_hash, weights_state
from clipself_seg.clip.example_embeddings import ReadRegions, dense_regions, with_examples
from clipself_seg.clip.precision import full_precision, lower_precision, tf32
from clipself_seg.clip.templates import TEMPLATES, article, class_prompts
from clipself_seg.clip.vision_language import VisionLanguageBackbone
from clipself_seg.data.examples import ClassExamples
from clipself_seg.data.vocabulary import Names, Vocabulary
from clipself_seg.errors import InputError, known
from clipself_seg.files import atomic_path, home_expanded, remove_leftovers

# Part of every key: entries of version 1 may hold low precision, or the rows of other weights.
VERSION = 2
DIGEST = "digest"  # in the metadata of an entry; one without it is made again
DAY = 24 * 3600  # seconds
ENTRY = "[0-9a-f]" * 32 + ".safetensors"
MOST_BYTES = 2**30  # of the entries on disk together
OTHER = (("background",),)  # a word that is always among those that examples are compared with
KEPT = 16  # tensors in memory: sets of classes, with and without examples


def default_cache_dir() -> Path:
    """``$CLIPSELF_SEG_CACHE``, else ``~/.cache/clipself_seg``.

    Raises:
        InputError: it begins with "~", and the user has no folder.
    """
    folder = os.environ.get("CLIPSELF_SEG_CACHE") or "~/.cache/clipself_seg"
    return home_expanded(folder, "set CLIPSELF_SEG_CACHE to a folder for text embeddings")


class Texts:
    """Embeddings of classes by a backbone, kept in memory by what was asked for and the state of the weights.

    The state of the weights is a part of the key, so that embeddings are never stale; writes that torch does not count
    need `hashes.invalidate`. `KEPT` tensors are kept, and the least recently used one is dropped.

    Attributes:
        clip: the backbone that is asked.
        templates: a name in `TEMPLATES`.
        read: function from regions of an image to embeddings, where classes have examples (`clip.example_embeddings`).
    """

    def __init__(self, clip: VisionLanguageBackbone, templates: str) -> None:
        """
        Args:
            clip: the backbone that is asked; not owned. A region is the mean of its dense features, unless `read` says
                otherwise.
            templates: a name in `TEMPLATES`.
        """
        self.clip = clip
        self.templates = known(templates, TEMPLATES, "prompt templates")
        self.read: ReadRegions = functools.partial(dense_regions, clip)
        self._memory: dict[Hashable, Tensor] = {}

    def __getstate__(self) -> dict[str, object]:
        """The attributes, for a copy, while another thread may add texts."""
        return vars(self) | {"_memory": dict(self._memory)}

    def keep(
        self, asked: Hashable, compute: Callable[[], Tensor], module: nn.Module | None = None
    ) -> Tensor:
        """A copy of the tensor that is kept for what is asked; computes it if it is missing.

        Args:
            asked: beside the state of the weights and the templates.
            compute: makes it.
            module: whose weights decide it; None for those of the texts.
        """
        state = weights_state(self.clip.text_weights if module is None else module)
        key = state, TEMPLATES[self.templates], asked
        text = self._memory.pop(key, None)
        if text is None:
            text = compute()
        self._memory[key] = text
        for oldest in list(self._memory)[:-KEPT]:
            self._memory.pop(oldest, None)
        return text.clone()  # what a caller does to it stays with the caller

    def with_examples(
        self,
        names: Names,
        examples: tuple[ClassExamples, ...],
        text_KPE: Tensor,
        others: Callable[[], Tensor],
    ) -> Tensor:
        """Unit vectors (K, P, E) of classes, mixed with those of their examples, see `clip.example_embeddings`.

        Args:
            names: of each class.
            examples: of some classes, which share a name with them.
            text_KPE: unit length.
            others: gives embeddings (N, E) of `OTHER`.
        """
        by_name = {name: one for one in examples for name in one.names}
        given = [next(filter(None, map(by_name.get, own)), None) for own in names]
        if not any(given):
            return text_KPE

        def mix() -> Tensor:
            with torch.inference_mode(False):
                return with_examples(text_KPE, others(), given, self.clip, self.read)

        precision = lower_precision(text_KPE.device)
        return self.keep(("examples", precision, names, examples), mix, self.clip)


class TextBank(Texts):
    """Class embeddings of prompts: encoded, normalised, averaged, normalised.

    They are kept on disk, too, up to `MOST_BYTES`, under a key made of weights and sentences. What is kept is the same
    whoever asks first: encoded without autocast, inference mode and gradients.
    """

    def __init__(
        self,
        clip: VisionLanguageBackbone,
        templates: str = "vild63",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """
        Args:
            clip, templates: as for `Texts`.
            cache_dir: folder of the disk cache; None for `default_cache_dir`.
        """
        super().__init__(clip, templates)
        self.cache_dir = Path(cache_dir) if cache_dir is not None else default_cache_dir() / "text"

    def embed(
        self,
        words: Vocabulary | str | Sequence[str | Sequence[str]],
        examples: tuple[ClassExamples, ...] = (),
    ) -> Tensor:
        """Unit vectors (K, E) on the model's device; a class with synonyms gets the mean of theirs.

        Args:
            words: a vocabulary, or for each class its names, "dog|puppy" or a sequence of synonyms;
                one string is one class. Classes may come twice: their rows are equal.
            examples: of classes that have these names; a vocabulary has its own.

        Raises:
            InputError: as `Vocabulary.of`, and as `check_lengths`.
        """
        words = Vocabulary.of([words] if isinstance(words, str) else words, repeats=True)
        return self.embed_names(words.names(), (*examples, *words.examples))

    def embed_names(self, names: Names, examples: tuple[ClassExamples, ...] = ()) -> Tensor:
        """`embed` of names of each class as `Vocabulary.names` gives them, which are not looked at anew."""
        text_KE = self._stored(names, False)
        if not examples:
            return text_KE
        others = functools.partial(self._stored, OTHER, False)
        return self.with_examples(names, examples, text_KE[:, None], others)[:, 0]

    def embed_raw(self, names: Sequence[str], keep: bool = True) -> Tensor:
        """Embeddings (S, E) of S names, not normalised; the templates have to be one sentence.

        Args:
            names: S.
            keep: in memory and on disk. False is for names that will not come again together, such as
                those of a training step: every step would leave a file.
        """
        assert len(TEMPLATES[self.templates]) == 1, "several sentences have no mean that is raw"
        if not keep:
            return self._encode(list(names))
        return self._stored((tuple(names),), True)

    def _stored(self, names: Names, raw: bool) -> Tensor:
        """Unit vectors (K, E), or those of the names (S, E) as they are: from memory, from disk or computed now."""

        def read() -> Tensor:
            path, device = self._path(names, raw), self.clip.device
            # None of the caller's modes: low precision or inference tensors would reach the next caller.
            with torch.inference_mode(False), torch.no_grad(), full_precision(device), tf32(False):
                rows = len(names[0]) if raw else len(names)
                stored = None if path is None else _from_disk(path, (rows, self.clip.embed_dim))
                if stored is None:
                    stored = self._encode(list(names[0])).cpu() if raw else self._compute(names)
                    if path is not None:
                        _to_disk(path, stored)
                return stored.to(device)

        return self.keep((names, raw), read)

    def _compute(self, classes: Names) -> Tensor:
        check_lengths(self.clip, classes, self.templates)
        names = list(dict.fromkeys(name for synonyms in classes for name in synonyms))
        units = F.normalize(self._encode(names).cpu(), dim=-1)
        # Of each name the mean of its sentences, and of each class that of its names.
        of_names = F.normalize(units.view(len(names), -1, self.clip.embed_dim).mean(1), dim=-1)
        rows = dict(zip(names, of_names))
        means = [torch.stack([rows[name] for name in synonyms]).mean(0) for synonyms in classes]
        return F.normalize(torch.stack(means), dim=-1)

    @torch.no_grad()
    def _encode(self, names: list[str]) -> Tensor:
        """Embeddings (names x sentences, E) of every sentence of every name, not normalised."""
        prompts = [prompt for name in names for prompt in class_prompts(name, self.templates)]
        return self.clip.embed_texts(prompts).float()

    def _path(self, classes: Names, raw: bool) -> Path | None:
        if self.clip.text_key is None:
            return None
        weights = weights_hash(self.clip.text_weights) + self.clip.text_key
        prompts = [[class_prompts(name, self.templates) for name in names] for names in classes]
        content = json.dumps([VERSION, weights, prompts, *(["raw"] if raw else [])])
        key = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        return self.cache_dir / f"{key}.safetensors"


def _from_disk(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The embeddings of an entry, None if it has to be made: it is missing, or not as it was written."""
    try:
        with open_safetensors(path) as file:
            if tuple(file.get_slice("text").get_shape()) != shape:
                return None
            digest = (file.metadata() or {}).get(DIGEST)
            text: Tensor = file.get_tensor("text")
    except (SafetensorError, OSError, OutOfBounds, InputError):
        return None
    whole = text.dtype == torch.float32 and digest == _digest(path, text)
    return text if whole and text.isfinite().all() else None


def _to_disk(path: Path, text: Tensor) -> None:
    import safetensors.torch

    try:
        with atomic_path(path) as temporary:
            metadata = {DIGEST: _digest(path, text)}
            safetensors.torch.save_file({"text": text}, temporary, metadata=metadata)
        # Of killed processes: a younger one may be what another run is writing.
        remove_leftovers(path.parent, age=DAY)
        _forget_oldest(path.parent)
    except OSError:  # a read-only or full disk costs the next run some time, no more
        return


def _forget_oldest(folder: Path) -> None:
    """Removes the entries that were written the longest time ago, where all together have more than `MOST_BYTES`."""
    size = 0
    for path in sorted(folder.glob(ENTRY), key=os.path.getmtime, reverse=True):
        size += path.stat().st_size
        if size > MOST_BYTES:
            path.unlink(missing_ok=True)


def _digest(path: Path, text: Tensor) -> str:
    """Hash of the embeddings and the key of their entry, so that none stands for another."""
    return hash_tensors({path.stem: text})


class ClassTexts(Texts):
    """Text embeddings of changing class names and changing weights, one for each template."""

    def __init__(
        self, clip: VisionLanguageBackbone, templates: str, checkpointing: bool = False
    ) -> None:
        """
        Args:
            clip, templates: as for `Texts`.
            checkpointing: recompute the text tower in the backward pass.
        """
        super().__init__(clip, templates)
        self.checkpointing = checkpointing

    def embed(self, names: Names, examples: tuple[ClassExamples, ...] = ()) -> Tensor:
        """Unit vectors (T, P, E), one for each class and template, mixed with examples of classes of these names.

        Synonyms are averaged and the mean is made unit again. With gradients enabled and a text
        tower that trains, everything is encoded anew; else, and where there are examples, once for the same names and
        weights.
        """
        if torch.is_grad_enabled() and not examples and self.clip.text_trains:
            return self._encode(names)
        asked = lower_precision(self.clip.device), names
        text_TPE = self.keep(asked, torch.no_grad()(lambda: self._encode(names)))
        if not examples:
            return text_TPE
        others = torch.no_grad()(lambda: self.embed(OTHER).mean(1))
        return self.with_examples(names, examples, text_TPE, others)

    def _encode(self, names: Names) -> Tensor:
        flat = [name for synonyms in names for name in synonyms]
        prompts = [p for name in flat for p in class_prompts(name, self.templates, clean=False)]
        # Published and shipped numbers are those of the order that torch's faster sorting gives.
        encoded = self.clip.embed_texts(prompts, checkpointing=self.checkpointing, stable=False)
        rows = F.normalize(encoded.float(), dim=-1)
        counts = [len(synonyms) for synonyms in names]
        if max(counts) == 1:
            return rows.unflatten(0, (len(names), -1))
        per_class = rows.unflatten(0, (sum(counts), -1)).split(counts)
        return F.normalize(torch.stack([synonyms.mean(0) for synonyms in per_class]), dim=-1)


def check_lengths(clip: VisionLanguageBackbone, names: Names, templates: str) -> None:
    """Refuses what open_clip would cut without a word, so that classes may become the same.

    Args:
        clip: says how many tokens of a text it reads.
        names: of each class.
        templates: a name in `templates.TEMPLATES`.

    Raises:
        InputError: a name with more tokens than CLIP reads.
    """
    if clip.context_length is None:
        return
    longest = max(TEMPLATES[templates], key=len)
    for name in (name for synonyms in names for name in synonyms):
        prompt = longest.format(name, article=article(name))
        # A token is a byte at least, and most names are short of the limit by far.
        if 2 * len(prompt.encode()) <= clip.context_length:
            continue
        if clip.token_count(prompt) > clip.context_length:
            raise InputError(
                f'"{prompt[:60]}..." has more than the {clip.context_length} tokens that CLIP '
                "reads: shorten the name of the class"
            )
