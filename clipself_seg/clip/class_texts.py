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

from clipself_seg.clip.model import DenseCLIP
from clipself_seg.clip.prompts import TEMPLATES
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError

BATCH = 256  # prompts encoded together where no gradient is needed
MANY = 4096  # prompts that deserve a progress bar

Names = tuple[tuple[str, ...], ...]
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def class_names(words: Vocabulary | Sequence[str], all_synonyms: bool) -> Names:
    """The names of each class that go into its prompts.

    Args:
        words: a vocabulary, or strings; synonyms are separated by ", " or "|".
        all_synonyms: all names of a class, else the first alone. CAT-Seg's own spelling of a name
            takes the place of the first one.

    Raises:
        InputError: no class, or an empty name.
    """
    if isinstance(words, Vocabulary):
        found = [(c.catseg_name or c.names[0], *c.names[1:]) for c in words.classes]
    else:
        found = [tuple(word.replace("|", ", ").split(", ")) for word in words]
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
        self._kept: tuple[object, Tensor] | None = None

    def embed(self, names: Names) -> Tensor:
        """Unit vectors (T, P, E), one for each class and template.

        Synonyms are averaged and the mean is made unit again. With gradients enabled and a text
        tower that trains, everything is encoded anew; else once for the same words and weights.
        """
        trained = any(p.requires_grad for p in self.clip.text.parameters())
        if trained and torch.is_grad_enabled():
            return self._encode(names)
        key = (names, self._state())
        if self._kept is None or self._kept[0] != key:
            with torch.no_grad():
                self._kept = key, self._encode(names)
        return self._kept[1]

    def _state(self) -> tuple[int, ...]:
        """Changes with any bit of a weight.

        A sum over bit patterns: pointers and version counters miss what fused optimisers write.
        """
        sums = [p.detach().view(_BITS[p.element_size()]).sum() for p in self.clip.text.parameters()]
        return tuple(torch.stack(sums).tolist())

    def _encode(self, names: Names) -> Tensor:
        tokens, counts = self._tokenize(names)
        rows = F.normalize(self._run(tokens.to(self.clip.logit_scale.device)).float(), dim=-1)
        if max(counts) == 1:
            return rows.unflatten(0, (len(names), -1))
        per_class = rows.unflatten(0, (sum(counts), -1)).split(counts)
        return F.normalize(torch.stack([synonyms.mean(0) for synonyms in per_class]), dim=-1)

    def _tokenize(self, names: Names) -> tuple[Tensor, list[int]]:
        if self._tokens is None or self._tokens[0] != names:
            templates = TEMPLATES[self.templates]
            prompts = [t.format(name) for synonyms in names for name in synonyms for t in templates]
            self._tokens = names, self.clip.tokenize(prompts), [len(n) for n in names]
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
