"""Noun phrases and nouns of captions: how they are found, and the files that have them.

Noun phrases are chunks over part-of-speech tags of the Penn Treebank. A phrase is adjectives and
nouns, without the article before them ("large dog"). Phrases that prepositions join are one more
phrase ("large dog on a beach"). Nouns are a list, the most frequent ones, or those that an image's captions name.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from clipself_seg.data.annotations import ID, ImageId, JsonObject, coco_list, read_coco_json
from clipself_seg.errors import InputError, of_extra
from clipself_seg.files import read_text
from clipself_seg.schema import TEXT, Schema, texts
from lab.parallel import run_in_parallel

Tagger = Callable[[str], list[tuple[str, str]]]
"""Function from a caption to its words, each with its tag."""

# One letter for each word, so that a regular expression matches chunks; other words are "x".
LETTERS = {
    **dict.fromkeys(("DT", "PDT", "PRP$", "CD"), "D"),
    **dict.fromkeys(("JJ", "JJR", "JJS"), "J"),
    **dict.fromkeys(("NN", "NNS", "NNP", "NNPS"), "N"),
    "IN": "P",
}
CHUNK = "J*N+"
ALONE = re.compile(CHUNK)
JOINED = re.compile(f"{CHUNK}(?:P+D*{CHUNK})+")
# Words about the photograph and not about what it shows.
OF_PHOTOGRAPHY = {"photo", "picture", "image", "view", "close", "background"}
# Endings of plurals and those of their singulars, the longest first.
PLURALS = (("ies", "y"), ("es", ""), ("s", ""))
CAPTIONS_AT_ONCE = 1000  # captions of a job of the tagger
# What no noun goes across.
_BREAK = re.compile(r"[^\w\s'’-]+")


def noun_phrases(caption: str, tagger: Tagger) -> list[str]:
    """Noun phrases of a caption in lower case and in order, joined ones last, without repetitions.

    Args:
        caption: sentence, with or without a full stop at its end.
        tagger: function that tags its words, such as `nltk_tagger()`.
    """
    words, letters = _tagged(caption, tagger)
    spans = [match.span() for pattern in (ALONE, JOINED) for match in pattern.finditer(letters)]
    return list(dict.fromkeys(" ".join(words[start:end]) for start, end in spans))


def _tagged(caption: str, tagger: Tagger) -> tuple[list[str], str]:
    """Words of a caption in lower case, and a letter for each of them."""
    tagged = tagger(caption)
    letters = "".join(LETTERS.get(tag, "x") for _, tag in tagged)
    return [word.lower() for word, _ in tagged], letters


@functools.cache
def nltk_tagger() -> Tagger:
    """NLTK's averaged perceptron tagger, on words as the Penn Treebank separates them.

    Raises:
        InputError: the package or its model is not installed; the message says how to get it.
    """
    nltk = of_extra("nltk", "the tagger of captions", "captions")
    separate = nltk.tokenize.TreebankWordTokenizer().tokenize

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


def tagged_captions(
    read: Callable[[str, Tagger], list[str]], captions: Sequence[str], processes: int, label: str
) -> list[list[str]]:
    """The results of a function of each caption, tagged by `nltk_tagger`, in order, with a progress bar.

    Args:
        read: function of a module, such as `noun_phrases`.
        captions: sentences.
        processes: number of processes to work in.
        label: title of the progress bar.

    Raises:
        InputError: as `nltk_tagger`.
    """
    nltk_tagger()  # refuses here what would fail in every process
    starts = range(0, len(captions), CAPTIONS_AT_ONCE)
    jobs = [(read, captions[start : start + CAPTIONS_AT_ONCE]) for start in starts]
    done = run_in_parallel(_read_tagged, jobs, processes=processes, label=label)
    return [words for job in done for words in job]


def _read_tagged(job: tuple[Callable[[str, Tagger], list[str]], Sequence[str]]) -> list[list[str]]:
    read, captions = job
    return [read(caption, nltk_tagger()) for caption in captions]


class ImageCaptions(NamedTuple):
    """Captions of one image.

    Attributes:
        texts: the captions.
        phrases: noun phrases of each caption; None where the file has none.
    """

    texts: list[str]
    phrases: list[list[str] | None]


def read_captions(path: str | os.PathLike[str]) -> dict[ImageId, ImageCaptions]:
    """Captions by image id in the order of the file, with noun phrases where it has them.

    Captions of blanks alone count as none, and blanks around others are left out.

    Raises:
        InputError: the file is missing or broken; an annotation without image or text, or with phrases
            that are no texts.
    """
    captions: dict[ImageId, ImageCaptions] = {}
    schema: Schema = {"image_id": ID, "caption": TEXT, "phrases?": texts()}
    for entry in coco_list(read_coco_json(path), "annotations", path, schema):
        text = entry["caption"].strip()
        if text:
            own = captions.setdefault(entry["image_id"], ImageCaptions([], []))
            own.texts.append(text)
            own.phrases.append(entry.get("phrases"))
    return captions


def add_phrases(
    annotations: Sequence[JsonObject], phrases: Sequence[list[str]]
) -> list[JsonObject]:
    """COCO's caption annotations with a list "phrases" in each, as `read_phrases` reads them."""
    pairs = zip(annotations, phrases, strict=True)
    return [{**annotation, "phrases": listed} for annotation, listed in pairs]


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
        tagger: function that tags its words, such as `nltk_tagger()`.
    """
    words, letters = _tagged(caption, tagger)
    spans = [match.span() for match in ALONE.finditer(letters)]
    heads = [(letters.index("N", start, end), end) for start, end in spans]
    return list(dict.fromkeys(" ".join(words[start:end]) for start, end in heads))


def single_phrases(phrases: Sequence[str]) -> list[str]:
    """The noun phrases of a caption that are not others joined by prepositions ("dog", not "dog on grass").

    Args:
        phrases: as `noun_phrases` makes them, which has every part of a joined phrase too.
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
    """The nouns whose plural a noun may be; of several words the last one changes."""
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
