"""Captions -> noun phrases, by a grammar of chunks over part-of-speech tags.

A phrase is adjectives and nouns, without the article before them ("large dog"). Phrases that
prepositions join are one more phrase ("large dog on a beach"). Tags are those of the Penn Treebank.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from clipself_seg.errors import InputError

Tagger = Callable[[str], list[tuple[str, str]]]
"""Caption -> its words, each with its tag."""

# One letter for each word, so that a regular expression finds chunks; other words are "x".
LETTERS = {
    **dict.fromkeys(("DT", "PDT", "PRP$", "CD"), "D"),
    **dict.fromkeys(("JJ", "JJR", "JJS"), "J"),
    **dict.fromkeys(("NN", "NNS", "NNP", "NNPS"), "N"),
    "IN": "P",
}
CHUNK = "J*N+"
ALONE = re.compile(CHUNK)
JOINED = re.compile(f"{CHUNK}(?:P+D*{CHUNK})+")


def noun_phrases(caption: str, tagger: Tagger) -> list[str]:
    """The phrases of a caption in lower case, in their order, joined ones behind; none twice.

    Args:
        caption: with or without a full stop at its end.
        tagger: such as `nltk_tagger()`.
    """
    tagged = tagger(caption)
    letters = "".join(LETTERS.get(tag, "x") for _, tag in tagged)
    words = [word.lower() for word, _ in tagged]
    found = [match.span() for pattern in (ALONE, JOINED) for match in pattern.finditer(letters)]
    return list(dict.fromkeys(" ".join(words[start:end]) for start, end in found))


@functools.cache
def nltk_tagger() -> Tagger:
    """NLTK's averaged perceptron, on words as the Penn Treebank separates them.

    Raises:
        InputError: the package or its model is not installed; says how to get it.
    """
    try:
        import nltk
        from nltk.tokenize import TreebankWordTokenizer
    except ImportError:
        raise InputError(
            "noun phrases of captions need the package nltk: pip install nltk"
        ) from None
    separate = TreebankWordTokenizer().tokenize

    def tag(caption: str) -> list[tuple[str, str]]:
        return [(word, tag) for word, tag in nltk.pos_tag(separate(caption))]

    try:
        tag("a dog")
    except LookupError:
        raise InputError(
            "noun phrases of captions need NLTK's tagger: "
            "python -m nltk.downloader averaged_perceptron_tagger_eng "
            "(averaged_perceptron_tagger before NLTK 3.9)"
        ) from None
    return tag
