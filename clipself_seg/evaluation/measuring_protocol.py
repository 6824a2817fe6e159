"""The protocol of a measurement: vocabulary, input sizes and rules, in one line under every table.

It is built from what the model and the evaluation use, and not from the configuration:
`models.model_protocols.Reading` is the model's part, mappers state their sizes, and evaluations their vocabularies and
rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from clipself_seg.models.model_protocols import Reading


@dataclasses.dataclass(frozen=True)
class MeasuringProtocol:
    """The settings that decide a data set's numbers beside weights and images, in words.

    Attributes:
        words: the vocabulary, and its number of classes.
        synonyms: which names of a class count, and how.
        templates: sentences around a name.
        background: treatment of pixels or boxes without a class.
        windows: windows and their stride, where the image is cut.
        size: size that images have where they are read.
        seen: which classes count as seen, and how many.
        features: description of CLIP's embedding of a place or of a region.
        scale: factor of the cosines before a softmax.
        precision: lower one that the model computes in; "" for float32.
        rule: rule of the means, where there are several.
    """

    words: str
    synonyms: str
    templates: str
    background: str
    windows: str
    size: str
    seen: str
    features: str = ""
    scale: str = ""
    precision: str = ""
    rule: str = ""

    @classmethod
    def of_model(cls, reading: Reading, **stated: str) -> MeasuringProtocol:
        """The protocol of a model's numbers.

        Args:
            reading: the model's way to read names and images.
            stated: the parts that the evaluation states; they count before the model's.
        """
        names = ("synonyms", "templates", "background", "windows", "features", "scale")
        precision = str(reading.precision or "").removeprefix("torch.")
        return cls(precision=precision, **{name: getattr(reading, name) for name in names} | stated)

    def as_dict(self) -> dict[str, str]:
        """The parts that say something, for results.json."""
        return {name: text for name, text in dataclasses.asdict(self).items() if text}


def protocol_line(parts: Mapping[str, object]) -> str:
    """The line of a protocol, as results.json has it."""
    return " | ".join(f"{name}: {text}" for name, text in parts.items())


def protocol_lines(protocols: Mapping[str, Mapping[str, object]]) -> list[str]:
    """A line for each protocol that differs, with the data sets that it is of.

    Args:
        protocols: name of a data set -> its protocol, as results.json has it.
    """
    names: dict[str, list[str]] = {}
    for name, parts in protocols.items():
        names.setdefault(protocol_line(parts), []).append(name)
    return [f"Protocol of {', '.join(own)}: {line}" for line, own in names.items()]


def size_text(mapper: object, of_model: str) -> str:
    """The size that a mapper gives to images, and what the model makes of it.

    Args:
        mapper: makes samples of records; its `size_rule()` says the size, which one of another project may lack.
        of_model: `models.model_protocols.Reading.size`.
    """
    rule = getattr(mapper, "size_rule", lambda: "not stated by the mapper")
    return f"{rule()}; {of_model}" if of_model else rule()


def words_text(name: str, count: int) -> str:
    """A vocabulary by its name or file, and its number of classes."""
    return f"{name}, {count} classes"


def seen_text(seen: np.ndarray | None, rule: str) -> str:
    """The rule by which classes are seen, and how many are, in words.

    Args:
        seen: (K,) bool; None if no rule tells.
        rule: which classes count as seen, in words.
    """
    return "not known, no split" if seen is None else f"{rule}: {int(seen.sum())} of {len(seen)}"
