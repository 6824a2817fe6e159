"""Classes of F-ViT as texts: given by names, embedded by CLIP, seen or unseen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipself_seg.checkpoints.hashes import weights_state
from clipself_seg.clip import TextBank
from clipself_seg.data.vocabulary import Vocabulary, class_names, seen_by_name
from clipself_seg.models.protocol import Classes

BACKGROUND = "background"


class OpenVocabulary:
    """Mixin that gives a detector its classes; `all_synonyms` takes the mean over all names of a class as its text.

    Attributes:
        classes: the classes; those of the training vocabulary are seen.
        trained_names: names of each class of the training vocabulary; () before any training.
    """

    bank: TextBank
    device: torch.device
    all_synonyms: bool
    classes = Classes()
    trained_names: tuple[tuple[str, ...], ...] = ()
    _text: tuple[Any, Tensor] = (None, torch.empty(0))

    def set_vocabulary(
        self,
        words: Vocabulary | Sequence[str],
        seen: np.ndarray | None = None,
        all_synonyms: bool | None = None,
    ) -> None:
        """Give the classes; labels are positions in them.

        Args:
            words: a vocabulary, or names with synonyms, "dog|puppy".
            seen: (K,) bool, classes of the training vocabulary. None: those that share a name with the
                vocabulary that the weights were trained on; all of them if that is not known.
            all_synonyms: whether the mean of all names of a class is its text, or the first alone; None
                takes the value that the model was built with.

        Raises:
            InputError: as `class_names`.
            ValueError: `seen` is of another number of classes.
        """
        if all_synonyms is None:
            all_synonyms = self.all_synonyms
        names = class_names(words, all_synonyms=all_synonyms)
        if seen is not None and len(seen) != len(names):
            raise ValueError(f"seen has {len(seen)} classes, there are {len(names)}")
        if seen is None and self.trained_names:
            given = words if isinstance(words, Vocabulary) else Vocabulary.from_names(words)
            seen = seen_by_name(
                given, Vocabulary.from_names(["|".join(n) for n in self.trained_names])
            )
        self.classes = Classes(
            names=names, seen=None if seen is None else np.asarray(seen, dtype=bool)
        )

    def text(self) -> Tensor:
        """Unit text embeddings (K + 1, E) of the classes, and of the word "background".

        Kept for one vocabulary and state of the text tower: the bank looks at each name of each class anew.
        """
        made_for = (self.classes.names, weights_state(self.bank.clip.text), self.device)
        if self._text[0] != made_for:
            with torch.inference_mode(False):  # an inference tensor could not be trained on later
                names = (self.classes.names, ((BACKGROUND,),))
                self._text = (made_for, torch.cat([self.bank.embed(own) for own in names]))
        return self._text[1]

    def seen(self) -> Tensor:
        """Classes of the training vocabulary, (K,) bool."""
        names, _, known = self.classes
        seen = torch.ones(len(names)) if known is None else torch.from_numpy(known)
        return seen.to(self.device, non_blocking=True).bool()
