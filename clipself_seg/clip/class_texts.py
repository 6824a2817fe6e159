"""Class names -> prompts -> text embeddings with gradients, cached until weights or names change.

`TextBank` is for a CLIP that never changes; here the text tower may be training.

Shapes: T classes, P prompts of a class, E embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.checkpoints.hashes import WeightsState, invalidate, weights_state
from clipself_seg.clip.model import DenseCLIP
from clipself_seg.clip.prompts import TEMPLATES, article, class_prompts
from clipself_seg.clip.runtime import autocast_dtype
from clipself_seg.clip.text import encode_prompts
from clipself_seg.data.vocabulary import Names
from clipself_seg.errors import InputError

KEPT = 8  # vocabularies whose embeddings are kept for one state of the weights
State = tuple[torch.device, torch.dtype | None, WeightsState]


class ClassTexts:
    """Text embeddings of a CLIP for changing class names and changing weights."""

    def __init__(self, clip: DenseCLIP, templates: str, checkpointing: bool = False) -> None:
        """
        Args:
            clip: its text tower is asked; not owned.
            templates: a name in `prompts.TEMPLATES`.
            checkpointing: recompute the text tower in the backward pass.
        """
        self.clip = clip
        self.templates = templates
        self.checkpointing = checkpointing
        self._tokens: tuple[Names, Tensor] | None = None
        self._state_of_kept: State | None = None
        self._kept: dict[Names, Tensor] = {}

    def check(self, names: Names) -> None:
        """Refuse what open_clip would cut without a word, so that classes may become the same.

        Raises:
            InputError: a name with more tokens than CLIP reads.
        """
        check_lengths(self.clip, names, self.templates)

    def embed(self, names: Names) -> Tensor:
        """Unit vectors (T, P, E), one for each class and template.

        Synonyms are averaged and the mean is made unit again. With gradients enabled and a text
        tower that trains, everything is encoded anew; else once for the same names and weights.
        """
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.clip.text.parameters()):
            return self._encode(names)
        state = self._state()
        if state != self._state_of_kept:
            self._state_of_kept = state
            self._kept = {}
        if names not in self._kept:
            while len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            with torch.no_grad():
                self._kept[names] = self._encode(names)
        return self._kept[names]

    def invalidate(self) -> None:
        """Forget all texts, after a write to the text tower that torch does not count (`hashes.invalidate`)."""
        invalidate(self.clip.text)

    def _state(self) -> State:
        """Changes with device and precision, and with every write to a weight."""
        return self._device, autocast_dtype(self._device), weights_state(self.clip.text)

    @property
    def _device(self) -> torch.device:
        return self.clip.logit_scale.device

    def _encode(self, names: Names) -> Tensor:
        # Published and shipped numbers are those of the order that torch's faster sorting gives.
        encoded = encode_prompts(
            self.clip.text,
            self._tokenize(names),
            checkpointing=self.checkpointing,
            stable=False,
        )
        rows = F.normalize(encoded.float(), dim=-1)
        counts = [len(synonyms) for synonyms in names]
        if max(counts) == 1:
            return rows.unflatten(0, (len(names), -1))
        per_class = rows.unflatten(0, (sum(counts), -1)).split(counts)
        return F.normalize(torch.stack([synonyms.mean(0) for synonyms in per_class]), dim=-1)

    def _tokenize(self, names: Names) -> Tensor:
        """Tokens of all prompts; those of the last names are kept for the next training step."""
        if self._tokens is None or self._tokens[0] != names:
            self.check(names)
            flat = [name for synonyms in names for name in synonyms]
            prompts = [p for name in flat for p in class_prompts(name, self.templates, clean=False)]
            self._tokens = names, self.clip.tokenize(prompts)
        return self._tokens[1]


def check_lengths(clip: DenseCLIP, names: Names, templates: str) -> None:
    """Refuse what open_clip would cut without a word, so that classes may become the same.

    Args:
        clip: its text tower says how many tokens it reads.
        names: of each class.
        templates: a name in `prompts.TEMPLATES`.

    Raises:
        InputError: a name with more tokens than CLIP reads.
    """
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
