"""Additional metrics that a configuration turns on, see `config.numbers`."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode

from clipself_seg.data.similarity import load_similarity
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError


class Extras(NamedTuple):
    """The choice of additional metrics; the fields are keys of ``TEST.NUMBERS`` in lower case."""

    similarity: str = ""
    boundary: bool = False
    naming: bool = False
    synonyms: int = 0
    oracle: bool = False
    gap: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode, task: str, measured: Collection[str]) -> Extras:
        """Reads ``TEST.NUMBERS``.

        Args:
            cfg: configuration.
            task: what evaluates, for the message.
            measured: fields that it measures.

        Raises:
            InputError: a key is set that it does not measure.
        """
        numbers = cfg.TEST.NUMBERS
        asked = cls(
            numbers.SIMILARITY,
            numbers.BOUNDARY,
            numbers.NAMING,
            numbers.SYNONYMS,
            numbers.ORACLE,
            numbers.GAP,
        )
        for field, value in asked._asdict().items():
            if value and field not in measured:
                raise InputError(
                    f"TEST.NUMBERS.{field.upper()} is {value!r}, which {task} does not measure: it has "
                    f"{', '.join(name.upper() for name in measured)} of these keys"
                )
        return asked

    def text(self) -> str:
        """What is on, for the protocol of a table; "" for nothing."""
        on = {name.upper(): value for name, value in self._asdict().items() if value}
        return ", ".join(name if value is True else f"{name} {value}" for name, value in on.items())

    def similarity_of(self, vocabulary: Vocabulary) -> np.ndarray | None:
        """Similarity (K, K) of the classes, None if it is not asked for; see `load_similarity`."""
        return load_similarity(self.similarity, vocabulary) if self.similarity else None
