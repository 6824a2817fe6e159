"""Reads nouns and their distances from WordNet's database files (wndb(5WN)).

Debian's package `wordnet-base` has them in /usr/share/wordnet, Princeton's archive in dict/. The distance of two
synsets is the number of edges of the shortest path between them over a common hypernym; path similarity is
1 / (1 + distance).

Legend: K classes, A synsets that are hypernyms of some class, itself included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from clipself_seg.errors import InputError
from clipself_seg.files import read_text

FILES = ("index.noun", "data.noun", "noun.exc")
HYPERNYMS = ("@", "@i")
# Synsets above all that can be seen; a name's first sense below it counts, if it has one.
PHYSICAL = "physical_entity"
# Endings of plurals and of their singulars, as WordNet's own morphology has them for nouns.
DETACHMENT = (
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
    ("s", ""),
)
# What data sets write behind a word that stands for more than it says.
SUFFIXES = {"other", "merged", "stuff"}
PARTICIPLES = ("ed", "ing")
UNKNOWN = 255  # distance of classes that nothing connects; real ones are below
Key = TypeVar("Key", str, int)
LIMIT = 64 << 20  # bytes of a file of the database; that of WordNet 3.0 has 15 million


class WordNet(NamedTuple):
    """The nouns of a WordNet database.

    Attributes:
        senses: lemma, in lower case with "_" between words -> its synsets, the most frequent first.
        hypernyms: synset -> the synsets directly above it.
        exceptions: irregular plural -> its singulars.
    """

    senses: Mapping[str, tuple[int, ...]]
    hypernyms: Mapping[int, tuple[int, ...]]
    exceptions: Mapping[str, tuple[str, ...]]


def read_wordnet(folder: str | Path) -> WordNet:
    """Read the nouns of a folder with `FILES`.

    Raises:
        InputError: a file is missing, too large or no file of the database.
    """
    folder = Path(folder)
    for name in FILES:
        path = folder / name
        if not path.is_file():
            raise InputError(
                f"{path} is missing: give the folder of WordNet's database, such as /usr/share/wordnet of "
                "Debian's package wordnet-base"
            )
        if path.stat().st_size > LIMIT:
            raise InputError(f"{path} has more than {LIMIT >> 20} MiB: it is no file of WordNet")
    senses = dict(_entries(folder / "index.noun", _sense))
    hypernyms = dict(_entries(folder / "data.noun", _synset))
    exceptions = {
        plural: tuple(singulars) for plural, *singulars in _fields(folder / "noun.exc") if singulars
    }
    for lemma, synsets in senses.items():
        if strange := [s for s in synsets if s not in hypernyms]:
            raise InputError(
                f'{folder}: index.noun has "{lemma}" in synset {strange[0]}, which data.noun lacks: take all '
                "files from one release"
            )
    return WordNet(senses, hypernyms, exceptions)


def _fields(path: Path) -> Iterator[list[str]]:
    """Fields of every line but those of the licence, which begin with a blank."""
    for line in read_text(path, "file of WordNet", "latin-1").split("\n"):
        if line and not line.startswith(" "):
            yield line.partition("|")[0].split()


def _entries(
    path: Path, parse: Callable[[list[str]], tuple[Key, tuple[int, ...]]]
) -> Iterator[tuple[Key, tuple[int, ...]]]:
    for fields in _fields(path):
        try:
            yield parse(fields)
        except (ValueError, IndexError):
            raise InputError(
                f'{path}: "{" ".join(fields)[:60]}" is no line of WordNet\'s database: give a whole file'
            ) from None


def _sense(fields: list[str]) -> tuple[str, tuple[int, ...]]:
    """lemma pos synset_cnt p_cnt symbols... sense_cnt tagsense_cnt offsets..."""
    count = int(fields[2])
    first = 4 + int(fields[3]) + 2
    offsets = tuple(map(int, fields[first:]))
    if not count or len(offsets) != count:
        raise ValueError("another number of synsets than stated")
    return fields[0], offsets


def _synset(fields: list[str]) -> tuple[int, tuple[int, ...]]:
    """offset lex_filenum ss_type w_cnt (hexadecimal) words... p_cnt and four fields of each pointer."""
    first = 4 + 2 * int(fields[3], 16)
    pointers = fields[first + 1 :]
    if len(pointers) != 4 * int(fields[first]):
        raise ValueError("another number of pointers than stated")
    above = [int(pointers[i + 1]) for i in range(0, len(pointers), 4) if pointers[i] in HYPERNYMS]
    return int(fields[0]), tuple(above)


def singulars(word: str, exceptions: Mapping[str, Sequence[str]]) -> list[str]:
    """A noun, and what its singular may be by WordNet's rules."""
    made = [word[: -len(end)] + new for end, new in DETACHMENT if word.endswith(end)]
    return list(dict.fromkeys([word, *exceptions.get(word, ()), *made]))


def lemmas(name: str, exceptions: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Lemmas that may stand for a class's name, the best first.

    Those of the whole name come first. Of a compound that is unknown its head stands for it: the last words of
    "swimming pool ladder", the first one of "wall-brick", as COCO writes it.
    """
    plain = re.sub(r"\(.*?\)", " ", name.lower()).replace("_", " ")
    parts = [part for part in re.split(r"-", plain) if part.strip() not in SUFFIXES]
    whole = " ".join("-".join(parts).split())
    words = whole.replace("-", " ").split()
    heads = [" ".join(words[start:]) for start in range(len(words))]
    if len(parts) > 1 and " " not in whole:
        heads[1:1] = [words[0]]
    for text in dict.fromkeys([whole, whole.replace("-", ""), *heads]):
        *before, last = text.split() or [""]
        for one in singulars(last, exceptions):
            if one:
                yield "_".join([*before, one])


def ancestors(synset: int, hypernyms: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Every synset above a synset, itself too -> the number of edges to it."""
    distances = {synset: 0}
    level = [synset]
    while level:
        above = [h for one in level for h in hypernyms.get(one, ())]
        known = distances[level[0]] + 1
        level = [h for h in dict.fromkeys(above) if h not in distances]
        distances.update(dict.fromkeys(level, known))
    return distances


def solid_lemma(word: str, wordnet: WordNet) -> str | None:
    """The lemma of a compound that is written as one word, or that of its head; None if there is neither.

    "swimmingpool" is "swimming_pool", and "pottedplant", whose first part is no noun but a participle, is "plant".
    """
    parts = [(word[:start], word[start:]) for start in range(2, len(word) - 2)]
    for before, last in parts:
        for one in singulars(last, wordnet.exceptions):
            if f"{before}_{one}" in wordnet.senses:
                return f"{before}_{one}"
    for before, last in parts:
        for one in singulars(last, wordnet.exceptions):
            if one in wordnet.senses and (before in wordnet.senses or before.endswith(PARTICIPLES)):
                return one
    return None


def name_synset(name: str, wordnet: WordNet) -> int | None:
    """The synset of a name: its most frequent sense among physical things, or of all if none is; None if unknown."""
    known = (one for one in lemmas(name, wordnet.exceptions) if one in wordnet.senses)
    last = re.split(r"[\W_]+", re.sub(r"\(.*?\)", "", name.lower()).strip())[-1]
    lemma = next(known, None) or solid_lemma(last, wordnet)
    if lemma is None:
        return None
    senses = wordnet.senses[lemma]
    roots = set(wordnet.senses.get(PHYSICAL, ()))
    physical = (s for s in senses if roots & ancestors(s, wordnet.hypernyms).keys())
    return next(physical, senses[0])


def class_distances(names: Sequence[Sequence[str]], wordnet: WordNet) -> np.ndarray:
    """Distance of each pair of classes, uint8 (K, K): the smallest one between any of their names.

    `UNKNOWN` between classes that have no common hypernym, or of which one is in no synset; 0 on the diagonal.

    Args:
        names: names of each class.
        wordnet: the nouns.
    """
    above: list[dict[int, int]] = []
    for synonyms in names:
        own: dict[int, int] = {}
        for synset in {name_synset(name, wordnet) for name in synonyms} - {None}:
            for ancestor, distance in ancestors(synset, wordnet.hypernyms).items():  # type: ignore[arg-type]
                own[ancestor] = min(distance, own.get(ancestor, distance))
        above.append(own)
    columns = {synset: i for i, synset in enumerate(sorted({s for own in above for s in own}))}
    far = 2 * UNKNOWN  # two of them are far below what 16 bits hold
    table_KA = np.full((len(names), max(1, len(columns))), far, dtype=np.int16)
    for row, own in zip(table_KA, above):
        row[[columns[synset] for synset in own]] = list(own.values())
    pairs = np.stack([(table_KA + row).min(axis=1) for row in table_KA])
    np.fill_diagonal(pairs, 0)
    return np.minimum(pairs, UNKNOWN).astype(np.uint8)
