"""Words as people type them: commas between classes, bars between synonyms, files, known vocabularies."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from pathlib import Path

from clipself_seg.data.vocabulary import Vocabulary, available_vocabularies, load_vocabulary
from clipself_seg.errors import InputError, nearest

FILES = (".txt", ".json")


def read_words(text: str) -> Vocabulary:
    """What a user gave as the vocabulary.

    Args:
        text: words ("dog|puppy, grass, sky"), the name of a built-in vocabulary, or a file: .txt
            with a class a line (or separated by commas, "#" starts a comment), or .json as for
            `load_vocabulary`.

    Returns:
        Of the user's own words a vocabulary called "custom".

    Raises:
        InputError: no such file or vocabulary, no words, an empty one, or one word twice.
    """
    text = text.strip()
    if text in available_vocabularies() or text.lower().endswith(".json"):
        return load_vocabulary(text)
    if text.lower().endswith(".txt"):
        return own_words(_read_text(Path(text)), origin=text)
    # No word has an underscore, but most names of vocabularies do: this is one, misspelt.
    if "," not in text and re.fullmatch(r"\w*_\w*", text):
        raise InputError(
            f'no vocabulary "{text}": {nearest(text, available_vocabularies())}\n'
            f'If it is a word, put a comma behind it; a file ends in {" or ".join(FILES)}.'
        )
    words = text.split(",")
    return own_words(words[:-1] if len(words) > 1 and not words[-1].strip() else words)


def own_words(entries: Sequence[str], origin: str = "the vocabulary") -> Vocabulary:
    """A vocabulary called "custom" of classes with synonyms, whatever case they are written in.

    Args:
        entries: one for each class; "dog|puppy" and "dog, puppy" are synonyms.
        origin: what a message calls them.

    Raises:
        InputError: no words, an empty one, one word twice, or an entry that is no string.
    """
    for entry in entries:
        if not isinstance(entry, str):
            raise InputError(
                f"{origin} has {reprlib.repr(entry)}, which is no string: give one for each class, "
                'with bars between synonyms, such as "dog|puppy"'
            )
    classes = [[word.strip() for word in re.split(r"\||, ", entry)] for entry in entries]
    if not any(word for words in classes for word in words):
        raise InputError(f'{origin} is empty: give at least one word, such as "dog, grass, sky"')
    seen: dict[str, str] = {}
    for entry, words in zip(entries, classes):
        for word in words:
            if not word:
                raise InputError(
                    f'{origin} has an empty word in "{entry}": remove a comma or a bar'
                )
            if word.casefold() in seen:
                raise InputError(
                    f'{origin} has "{word}" twice, in "{seen[word.casefold()]}" and in '
                    f'"{entry.strip()}": remove one'
                )
            seen[word.casefold()] = entry.strip()
    return Vocabulary.from_names(["|".join(words) for words in classes])


def _read_text(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such vocabulary file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text in UTF-8: {error}") from None
    lines = (line.split("#")[0].strip().rstrip(",") for line in text.splitlines())
    return [word for line in lines if line for word in line.split(",")]
