"""Nouns of captions: a list of them, the most frequent ones, and those that an image's captions name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from clipself_seg.data.captions import ALONE, LETTERS, Tagger
from clipself_seg.errors import InputError
from clipself_seg.files import read_text

# Words about the photograph and not about what it shows.
OF_PHOTOGRAPHY = {"photo", "picture", "image", "view", "close", "background"}
# Endings of plurals and those of their singulars, the longest first.
PLURALS = (("ies", "y"), ("es", ""), ("s", ""))
# What no noun goes across.
_BREAK = re.compile(r"[^\w\s'’-]+")


def read_nouns(path: str | os.PathLike[str]) -> list[str]:
    """Nouns of a text file, a line each: the text before the first comma, as RegionCLIP's and VLDet's lists have it.

    Blank lines, and nouns that came before, are left out.

    Raises:
        InputError: the file cannot be read, or has no noun.
    """
    lines = read_text(path, "list of nouns").splitlines()
    nouns = [line.partition(",")[0].strip() for line in lines]
    listed = list(dict.fromkeys(noun for noun in nouns if noun))
    if not listed:
        raise InputError(f"list of nouns {path} has no noun: give one a line")
    return listed


def head_nouns(caption: str, tagger: Tagger) -> list[str]:
    """Nouns of a caption in lower case: the nouns at the end of each noun phrase, without its adjectives.

    Args:
        caption: sentence.
        tagger: function that tags its words, such as `captions.nltk_tagger()`.
    """
    tagged = tagger(caption)
    letters = "".join(LETTERS.get(tag, "x") for _, tag in tagged)
    words = [word.lower() for word, _ in tagged]
    spans = [match.span() for match in ALONE.finditer(letters)]
    heads = [(letters.index("N", start, end), end) for start, end in spans]
    return list(dict.fromkeys(" ".join(words[start:end]) for start, end in heads))


def single_phrases(phrases: Sequence[str]) -> list[str]:
    """Those of a caption's noun phrases that are not others joined by prepositions ("dog", not "dog on grass").

    Args:
        phrases: as `captions.noun_phrases` makes them, which has every part of a joined phrase too.
    """

    def joined(phrase: str) -> bool:
        starts = [p for p in phrases if phrase.startswith(f"{p} ")]
        ends = [p for p in phrases if phrase.endswith(f" {p}")]
        length = len(phrase.split())
        return any(len(f"{p} {q}".split()) < length for p in starts for q in ends)

    return [phrase for phrase in phrases if not joined(phrase)]


def frequent_nouns(captions: Iterable[Sequence[str]], top: int) -> list[str]:
    """The nouns that most captions have, the most frequent first, in the order of the alphabet among equals.

    A plural counts as its singular, if some caption has that. Nouns of photography are left out.

    Args:
        captions: nouns of each caption.
        top: number of nouns; fewer come out if there are no more.
    """
    own = [set(nouns) for nouns in captions]
    counts = Counter(noun for nouns in own for noun in nouns)
    single = {noun: next((s for s in singulars(noun) if s in counts), noun) for noun in counts}
    folded = Counter(noun for nouns in own for noun in {single[noun] for noun in nouns})
    listed = [noun for noun in folded if noun.split()[-1] not in OF_PHOTOGRAPHY]
    return sorted(listed, key=lambda noun: (-folded[noun], noun))[:top]


def singulars(noun: str) -> list[str]:
    """What a noun may be the plural of; of several words the last one changes."""
    return [
        noun.removesuffix(plural) + single
        for plural, single in PLURALS
        if noun.endswith(plural) and len(noun) > len(plural) + 1
    ]


class NounsOfCaptions:
    """Finds the nouns of a list in captions: as whole words, in the singular of the list or its plural."""

    def __init__(self, nouns: Sequence[str]) -> None:
        """
        Args:
            nouns: of one or several words.
        """
        self._indices: dict[tuple[str, ...], list[int]] = {}
        for index, noun in enumerate(nouns):
            self._indices.setdefault(tuple(_words(noun)), []).append(index)
        self._longest = max(map(len, self._indices))

    def __call__(self, captions: Iterable[str]) -> list[int]:
        """Indices of the nouns that any of the captions has, ascending."""
        indices: set[int] = set()
        for caption in captions:
            for part in _BREAK.split(caption):
                words = _words(part)
                for start in range(len(words)):
                    for end in range(start + 1, min(start + self._longest, len(words)) + 1):
                        indices.update(self._of(words[start:end]))
        return sorted(indices)

    def _of(self, words: list[str]) -> list[int]:
        *first, last = words
        forms = [last, *singulars(last)]
        return next(
            (self._indices[k] for form in forms if (k := (*first, form)) in self._indices), []
        )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
