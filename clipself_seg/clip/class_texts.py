"""Class names -> prompts -> text embeddings with gradients, kept only while they are true.

`TextBank` is for a CLIP that never changes; here the text tower may be training.

Shapes: T classes, P prompts of a class, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from clipself_seg.checkpoints.hashes import checksums
from clipself_seg.clip.model import DenseCLIP
from clipself_seg.clip.prompts import TEMPLATES
from clipself_seg.data.vocabulary import Vocabulary, split_synonyms
from clipself_seg.errors import InputError

BATCH = 256  # prompts encoded together where no gradient is needed
MANY = 4096  # prompts that deserve a progress bar

Names = tuple[tuple[str, ...], ...]
KEPT = 8  # vocabularies whose embeddings are kept for one state of the weights
State = tuple[torch.device, torch.dtype | None, tuple[int, ...]]


def class_names(words: Vocabulary | Sequence[str], all_synonyms: bool) -> Names:
    """The names of each class that go into its prompts.

    Args:
        words: a vocabulary, or strings; synonyms are separated by ", " or "|".
        all_synonyms: all names of a class, else the first alone. CAT-Seg's own entry of a class
            takes the place of all its names.

    Raises:
        InputError: no class, an empty name, or something else than a list of strings.
    """
    if isinstance(words, str):
        raise InputError(
            f'"{words}" is one string: give a list of class names, such as ["{words}"]'
        )
    if isinstance(words, Vocabulary):
        # CAT-Seg's own entry stands for the whole class, also where the data set has synonyms.
        found = [
            tuple(c.catseg_name.split(", ")) if c.catseg_name else c.names for c in words.classes
        ]
    else:
        for word in words:
            if not isinstance(word, str):
                raise InputError(
                    f'{word!r} is no class name: each is a string, synonyms as in "dog|puppy"'
                )
        found = [tuple(split_synonyms(word)) for word in words]
    if not found:
        raise InputError("the vocabulary is empty; give at least one class name")
    for names in found:
        if not all(name.strip() for name in names):
            raise InputError(f"the vocabulary has an empty class name: {names}")
    return tuple(names if all_synonyms else names[:1] for names in found)


class ClassTexts:
    """Text embeddings of a CLIP for changing words and changing weights."""

    def __init__(self, clip: DenseCLIP, templates: str, checkpointing: bool = False) -> None:
        """
        Args:
            clip: its text tower is asked; not owned.
            templates: a name in `prompts.TEMPLATES`.
            checkpointing: recompute the text tower in the backward pass.
        """
        self.clip, self.templates, self.checkpointing = clip, templates, checkpointing
        self._tokens: tuple[Names, Tensor, list[int]] | None = None
        self._state_of_kept: State | None = None
        self._kept: dict[Names, Tensor] = {}

    def check(self, names: Names) -> None:
        """Refuse what open_clip would cut without a word, so that classes may become the same.

        Raises:
            InputError: a name with more tokens than CLIP reads.
        """
        longest = max(TEMPLATES[self.templates], key=len)
        for name in (name for synonyms in names for name in synonyms):
            prompt = longest.format(name)
            # A token is a byte at least, and most names are short of the limit by far.
            if 2 * len(prompt.encode()) <= self.clip.context_length:
                continue
            if self.clip.token_count(prompt) > self.clip.context_length:
                raise InputError(
                    f'"{prompt[:60]}..." has more than the {self.clip.context_length} tokens that CLIP '
                    "reads: shorten the name of the class"
                )

    def embed(self, names: Names) -> Tensor:
        """Unit vectors (T, P, E), one for each class and template.

        Synonyms are averaged and the mean is made unit again. With gradients enabled and a text
        tower that trains, everything is encoded anew; else once for the same words and weights.
        """
        trained = any(p.requires_grad for p in self.clip.text.parameters())
        if trained and torch.is_grad_enabled():
            return self._encode(names)
        state = self._state()
        if state != self._state_of_kept:
            self._state_of_kept, self._kept = state, {}
        if names not in self._kept:
            while len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            with torch.no_grad():
                self._kept[names] = self._encode(names)
        return self._kept[names]

    def _state(self) -> State:
        """Changes with device and precision, with any bit of a weight, and with the order of weights."""
        kind = self._device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return self._device, low, checksums(self.clip.text.parameters())

    @property
    def _device(self) -> torch.device:
        return self.clip.logit_scale.device

    def _encode(self, names: Names) -> Tensor:
        tokens, counts = self._tokenize(names)
        rows = F.normalize(self._run(tokens.to(self._device)).float(), dim=-1)
        if max(counts) == 1:
            return rows.unflatten(0, (len(names), -1))
        per_class = rows.unflatten(0, (sum(counts), -1)).split(counts)
        return F.normalize(torch.stack([synonyms.mean(0) for synonyms in per_class]), dim=-1)

    def _tokenize(self, names: Names) -> tuple[Tensor, list[int]]:
        if self._tokens is None or self._tokens[0] != names:
            templates = TEMPLATES[self.templates]
            self.check(names)
            prompts = [t.format(name) for synonyms in names for name in synonyms for t in templates]
            tokens = self.clip.tokenize(prompts)
            self._tokens = names, tokens, [len(n) for n in names]
        return self._tokens[1], self._tokens[2]

    def _run(self, tokens: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            if self.checkpointing:
                return checkpoint(self.clip.text, tokens, use_reentrant=False)
            return self.clip.text(tokens)
        # Texts of like length side by side: the tower cuts a batch at its longest.
        order = tokens.argmax(dim=-1).argsort()
        bar = tqdm(order.split(BATCH), "texts", leave=False, disable=len(tokens) < MANY)
        rows = torch.cat([self.clip.text(tokens[part]) for part in bar])
        return rows[order.argsort()]
