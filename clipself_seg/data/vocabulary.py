"""Vocabularies: class names with synonyms, what is known about each class, and how they are written.

One grammar: in text that somebody types, "," separates classes and "|" synonyms, as in "dog|puppy, grass".
An entry of a list or of a JSON file is one class, whose synonyms "|" or ", " separates, or a list of names, which are
never split. FC-CLIP's and OpenSeg's label files, lines of `ID:NAME,NAME,...`, take the place of a data set's own names.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipself_seg.errors import InputError, check_keys, known, nearest, require_unique
from clipself_seg.files import read_json, read_text
from clipself_seg.schema import FLAG, TEXT, WHOLE, Schema, check, texts

if TYPE_CHECKING:
    from clipself_seg.data.examples import ClassExamples

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "vocabularies"
TEXT_FILES = (".txt", ".json")
# The names of each class.
Names = tuple[tuple[str, ...], ...]
NO_TEXT = re.compile("[\ud800-\udfff]")  # bytes of the command line that are no UTF-8
MOST_LETTERS = 500  # of a name: the time of a tokenizer grows with their square
NO_CLASS = "invalid_class_id"  # the name in a row of a label file that is none
# A class in JSON, and a vocabulary; a class may be its names alone, "dog|puppy".
CLASS: dict[str, Schema] = {
    "names": texts("names"),
    "dataset_id?": WHOLE,
    "isthing?": FLAG,
    "seen?": FLAG,
    "frequency?": TEXT,
    "catseg_name?": TEXT,
}
CONTENT: dict[str, Schema] = {
    "classes": [CLASS],
    "name?": TEXT,
    "about?": TEXT,
    "allow_duplicate_names?": FLAG,
}
FORM = 'give a list of names, or an object with a list "classes" of {"names": [...], ...}'


@dataclass(frozen=True)
class VocabularyClass:
    """One class.

    Attributes:
        names: its synonyms as the data set spells them; the first is the class's own name.
        dataset_id: its number in the annotation files.
        isthing: thing or stuff; None where the data set does not tell.
        seen: True if training shows it (a base class); None where there is no such split.
        frequency: LVIS's ``r``, ``c`` or ``f``; rare classes are the unseen ones.
        catseg_name: CAT-Seg's entry of the class, where it is not `names` joined by ", ".
    """

    names: tuple[str, ...]
    dataset_id: int
    isthing: bool | None = None
    seen: bool | None = None
    frequency: str | None = None
    catseg_name: str | None = None

    @property
    def catseg_names(self) -> tuple[str, ...]:
        """The names in CAT-Seg's list, which stand for the whole class; else the data set's own."""
        return tuple(self.catseg_name.split(", ")) if self.catseg_name else self.names


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of classes; the position of a class is its label in the whole project.

    Attributes:
        numbered: False of words without numbers of their own, whose `dataset_id` only counts them, from 0.
    """

    name: str
    classes: tuple[VocabularyClass, ...]
    about: str = ""
    examples: tuple[ClassExamples, ...] = ()
    numbered: bool = True

    @classmethod
    def of(
        cls,
        words: Words,
        *,
        name: str = "custom",
        origin: str = "the vocabulary",
        repeats: bool = False,
    ) -> Vocabulary:
        """The vocabulary of class names in whatever form they are given.

        Args:
            words: a vocabulary, which is returned as it is; text ("dog|puppy, grass, sky"), a built-in name or a file,
                see `load`; an entry for each class, "dog|puppy" or a sequence of names, which are taken as they are; or
                the content of a JSON file, see `load`.
            name: of the vocabulary of a text or of a list.
            origin: name of a list or a content in messages.
            repeats: True if two classes of a list may have a common name. In a JSON file "allow_duplicate_names" says
                it of their first names.

        Raises:
            InputError: no such file or vocabulary, no class, an empty name, one of more than 500 letters, an entry of
                another type, or a name that two classes have.
        """
        if isinstance(words, Vocabulary):
            return words
        if isinstance(words, os.PathLike):
            return cls.load(words)
        if isinstance(words, Mapping):
            return _of_content(words, origin)
        if isinstance(words, str):
            words = words.strip()
            if words in cls.available() or words.lower().endswith(TEXT_FILES):
                return cls.load(words)
            # No word has an underscore, but most names of vocabularies do: this is one, misspelt.
            meant = _begun_by(words)
            if "," not in words and (meant or re.fullmatch(r"\w*_\w*", words)):
                several = f"choose from: {', '.join(meant)}"
                hint = several if meant[1:] else nearest(words, meant or cls.available())
                raise InputError(
                    f'no vocabulary "{words}": {hint}\n'
                    f'If it is a word, put a comma behind it; a file ends in {" or ".join(TEXT_FILES)}.'
                )
            words = words.split(",")
            if len(words) > 1 and not words[-1].strip():
                words.pop()
        return _of_list(words, name, origin, repeats)

    @classmethod
    def load(cls, name: NamedVocabulary | os.PathLike[str]) -> Vocabulary:
        """Reads and checks a built-in vocabulary or a file.

        Args:
            name: a built-in name (see `available`); a .json file with a list of classes or an object like the built-in
                ones; or a .txt file with a class a line (or separated by commas, "#" starts a comment). A vocabulary is
                returned as it is.

        Raises:
            InputError: no such vocabulary, or its content cannot be used.
        """
        if isinstance(name, Vocabulary):
            return name
        path = Path(name)
        if path.suffix.lower() == ".txt":
            text = read_text(path, "vocabulary file")
            lines = [line.split("#")[0].strip().rstrip(",") for line in text.splitlines()]
            words = {n: line.split(",") for n, line in enumerate(lines, 1) if line}
            number, several = max(words.items(), key=lambda item: len(item[1]), default=(0, ()))
            if len(words) > 1 and len(several) > 1:
                wrong = f"line {number} has {len(several)} classes; write | between synonyms"
                logger.warning("%s: %s", path, wrong)
            return _of_list([*chain(*words.values())], "custom", str(path), False)
        if path.suffix.lower() == ".json":
            content = read_json(path, "vocabulary file")
            if isinstance(content, list):
                # CAT-Seg's own list of ADE20K's classes has names twice, and is used as it is.
                twice = path.name == "ade847.json"
                content = {"name": path.stem, "classes": content, "allow_duplicate_names": twice}
            return _of_content(content, str(path))
        hint = "\nA file of your own is named by its path, which has to end in .json or .txt."
        return _built_in(known(str(path), cls.available(), "vocabulary", hint=hint))

    @staticmethod
    def available() -> list[str]:
        """Names of the built-in vocabularies."""
        return sorted(path.stem for path in FOLDER.glob("*.json"))

    def with_examples(
        self, examples: Mapping[str, Sequence[Any]], weight: float = 0.75
    ) -> Vocabulary:
        """This vocabulary with regions of images that stand for classes too; only a call gives them, never a file.

        Args:
            examples: name -> examples, each in a form of `data.examples.as_example`, such as "ref.jpg#120,40,80,80" or
                (array, mask). The name of a class mixes them with its word. Another one, with synonyms as in
                "dog|puppy", is a further class, which they alone stand for.
            weight: of the examples beside a word, above 0; 1 leaves the word out.

        Raises:
            InputError: an example that cannot be read, or a class without any.
        """
        from clipself_seg.data.examples import ClassExamples, as_example

        assert 0 < weight <= 1, weight
        kept = {example.names: example for example in self.examples}
        classes = list(self.classes)
        for name, given in examples.items():
            own = Vocabulary.of([name], origin=f'the example "{name}"').classes[0]
            if isinstance(given, str) or not given:
                raise InputError(
                    f'"{name}" needs a list of examples, such as ["ref.jpg#120,40,80,80"]'
                )
            entry = next((c for c in classes if _plain(c.names) & _plain(own.names)), None)
            if entry is None:
                number = 1 + max((c.dataset_id for c in classes), default=-1)
                classes.append(entry := replace(own, dataset_id=number))
            names = tuple(dict.fromkeys((*entry.names, *entry.catseg_names)))
            own_weight = weight if entry in self.classes else 1.0
            before = kept.get(names, ClassExamples(names, (), own_weight))
            try:
                read = (*before.examples, *map(as_example, given))
            except InputError as error:
                raise InputError(f'an example of "{name}": {error}') from None
            kept[names] = before._replace(examples=tuple(dict.fromkeys(read)))
        return replace(self, classes=tuple(classes), examples=tuple(kept.values()))

    @property
    def worded(self) -> list[VocabularyClass]:
        """The classes whose words count: all but those of examples alone."""
        alone = {one.names[0] for one in self.examples if one.weight == 1}
        return [entry for entry in self.classes if entry.names[0] not in alone]

    def __len__(self) -> int:
        return len(self.classes)

    def __str__(self) -> str:
        return self.name

    @property
    def first_names(self) -> tuple[str, ...]:
        """The first name of every class."""
        return tuple(entry.names[0] for entry in self.classes)

    def names(self, *, all_synonyms: bool = True, catseg_names: bool = False) -> Names:
        """The names of each class, as models read them.

        Args:
            all_synonyms: all names of a class, else the first alone.
            catseg_names: CAT-Seg's own entry of a class takes the place of all its names.
        """
        count = None if all_synonyms else 1
        return tuple((c.catseg_names if catseg_names else c.names)[:count] for c in self.classes)

    def seen_in(self, trained: Vocabulary, *, exact: bool = False) -> np.ndarray:
        """Bool (K,): which classes share a name with a class that training shows.

        Args:
            trained: the training vocabulary; its novel classes (`seen` is False), as OV-COCO's, do not count.
            exact: compares strings as the files spell them, the published rule of panoptic fusion: of OpenSeg's
                ADE20K-150 list COCO's 133 classes have seen 64. Else names are compared in lower case, with hyphens
                and underscores as spaces, for LVIS writes "dining_table" where COCO has "dining table". Nothing is
                understood: "wall" is not seen because of "wall-brick", nor "sofa" because of "couch".
        """
        known = trained.shown(exact=exact)
        own = [set(entry.names) if exact else _plain(entry.names) for entry in self.classes]
        return np.array([not known.isdisjoint(names) for names in own], bool)

    def shown(self, *, exact: bool) -> set[str]:
        """Names of the classes that training shows, in the spelling that `seen_in` compares."""
        names = {name for c in self.classes if c.seen is not False for name in c.names}
        return names if exact else _plain(names)

    @property
    def thing(self) -> np.ndarray:
        """Bool (K,): which classes are things.

        Raises:
            InputError: the vocabulary does not tell.
        """
        return self._mask("isthing")

    @property
    def seen(self) -> np.ndarray:
        """Bool (K,): which classes training shows.

        Raises:
            InputError: the vocabulary does not tell.
        """
        return self._mask("seen")

    @functools.cached_property
    def dataset_id_to_index(self) -> dict[int, int]:
        """Number of a class in the annotation files -> its position."""
        return {entry.dataset_id: index for index, entry in enumerate(self.classes)}

    def _mask(self, key: str) -> np.ndarray:
        values = [getattr(entry, key) for entry in self.classes]
        if None in values:
            silent = self.first_names[values.index(None)]
            raise InputError(
                f'vocabulary "{self.name}" does not say "{key}" of "{silent}": '
                f'add "{key}": true or false to every class'
            )
        return np.array(values, dtype=bool)


# The vocabulary of a data set, or its name or file, for `Vocabulary.load`.
NamedVocabulary = Vocabulary | str
# Class names in any form that `Vocabulary.of` takes.
Words = Vocabulary | str | os.PathLike[str] | Iterable[str | Sequence[str]] | Mapping[str, Any]


def synonyms(entry: object, origin: str = "a class") -> tuple[str, ...]:
    """The names of a class: "dog|puppy" or "dog, puppy" is split, a sequence of names is taken as it is.

    Raises:
        InputError: another type, no name, an empty one, or one that cannot be given to a tokenizer.
    """
    names: tuple[Any, ...] = ()
    if isinstance(entry, str):
        names = tuple(name.strip() for name in re.split(r"\||, ", entry))
    elif isinstance(entry, Iterable) and not isinstance(entry, Mapping):
        names = tuple(entry)
    wrong = "" if names else "is no name and no list of names"
    for name in names:
        if not isinstance(name, str):
            wrong = "is no name and no list of names"
        elif not name.strip():
            wrong = "has an empty name"
        elif NO_TEXT.search(name):
            wrong = "is no text in UTF-8"
        elif len(name) > MOST_LETTERS:
            wrong = f"has a name of {len(name)} letters, of at most {MOST_LETTERS}"
    if wrong:
        raise InputError(
            f"{origin} is {reprlib.repr(entry)}, which {wrong}: give a name, with synonyms as in "
            '"dog|puppy"'
        )
    return names


@functools.cache
def _built_in(name: str) -> Vocabulary:
    return _of_content(read_json(FOLDER / f"{name}.json", "vocabulary file"), name)


def _of_list(entries: object, name: str, origin: str, repeats: bool) -> Vocabulary:
    """The vocabulary of a list with an entry for each class, see `Vocabulary.of`."""
    if not isinstance(entries, Iterable):
        raise InputError(
            f'{reprlib.repr(entries)} is no text and no list of words: give such as "dog, grass"'
        )
    entries = list(entries)
    if all(isinstance(entry, str) and not entry.strip(" |,") for entry in entries):
        raise InputError(f'{origin} is empty: give at least one class name, such as "dog"')
    classes = [
        VocabularyClass(synonyms(entry, f"class {index} of {origin}"), index)
        for index, entry in enumerate(entries)
    ]
    words = [word for entry in classes for word in entry.names]
    if not repeats:
        require_unique(map(str.casefold, words), "name", origin)
    return Vocabulary(name, tuple(classes), numbered=False)


def _of_content(content: object, origin: str) -> Vocabulary:
    """The vocabulary of a JSON file's content, see `Vocabulary.load`; `origin` is its name in messages."""
    if isinstance(content, Mapping) and isinstance(content.get("classes"), list):
        entries = [
            {"names": list(synonyms(e, f"{origin}: class {n}"))} if isinstance(e, str | list) else e
            for n, e in enumerate(content["classes"])
        ]
        content = {**content, "classes": entries}
    check(content, CONTENT, origin, FORM)
    assert isinstance(content, dict)
    check_keys(content, [key.rstrip("?") for key in CONTENT], origin)
    classes = [
        _parse_class(entry, index, f"{origin}: class {index}")
        for index, entry in enumerate(content["classes"])
    ]
    if not classes:
        raise InputError(f"{origin}: has no classes: name at least one")
    with_ids = sum("dataset_id" in entry for entry in content["classes"])
    if with_ids not in (0, len(classes)):
        raise InputError(
            f'{origin}: {with_ids} of {len(classes)} classes have a "dataset_id": give all or none'
        )
    require_unique((entry.dataset_id for entry in classes), "dataset_id", origin)
    if not content.get("allow_duplicate_names"):
        # Classes of one name get one prompt, so that no model can tell them apart.
        require_unique((entry.names[0].strip().lower() for entry in classes), "first name", origin)
    name = content.get("name", Path(origin).stem)
    return Vocabulary(name, tuple(classes), content.get("about", ""), numbered=bool(with_ids))


def _parse_class(entry: dict[str, Any], index: int, origin: str) -> VocabularyClass:
    check_keys(entry, [key.rstrip("?") for key in CLASS], origin)
    names = synonyms(entry["names"], origin)
    fields = {key: value for key, value in entry.items() if key != "names"}
    if "frequency" in fields:
        fields.setdefault("seen", fields["frequency"] != "r")
    # A list without numbers of its own counts its classes.
    fields.setdefault("dataset_id", index)
    return VocabularyClass(names=names, **fields)


def _begun_by(words: str) -> list[str]:
    """Built-in vocabularies that are called by some of their first parts, such as "coco" or "ADE20K-150"."""
    joined = re.sub(r"\W", "", words).casefold()
    return [name for name in Vocabulary.available() if joined in accumulate(name.split("_"))]


def _plain(names: Iterable[str]) -> set[str]:
    """Names in lower case, with hyphens and underscores as spaces."""
    return {" ".join(re.sub("[-_]", " ", name).lower().split()) for name in names}


def read_label_file(path: str | os.PathLike[str], vocabulary: Vocabulary) -> Vocabulary:
    """A vocabulary with the names of a label file, called after the file; order and kind of the classes stay.

    A line is `ID:NAME,NAME,...`, whose names are read letter by letter.

    With as many rows as classes they are in order. With more, as in COCO's file, the row of a class is that of its
    number in the data set.

    Args:
        path: file.
        vocabulary: the data set's own.

    Raises:
        InputError: the file cannot be read; a line of another form, or a number twice; classes without a row.
    """
    rows = _rows(path)
    numbers = list(rows)
    if len(rows) != len(vocabulary):
        numbers = [entry.dataset_id for entry in vocabulary.classes]
        lacking = [number for number in numbers if number not in rows]
        if len(rows) < len(vocabulary) or lacking:
            raise InputError(
                f"label file {path} has {len(rows)} classes, which are not the {len(vocabulary)} of "
                f"{vocabulary.name}"
                + (f" (there is none of number {lacking[0]})" if lacking else "")
                + ": give the list of the same data set"
            )
    classes = tuple(
        replace(entry, names=rows[number], catseg_name=None)
        for entry, number in zip(vocabulary.classes, numbers, strict=True)
    )
    return Vocabulary(Path(path).stem, classes, f"names of {path}")


def _rows(path: str | os.PathLike[str]) -> dict[int, tuple[str, ...]]:
    """The names of each number, in the order of the file."""
    rows: dict[int, tuple[str, ...]] = {}
    text = read_text(Path(path), "label file")
    for line_number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        number, colon, names = line.strip().partition(":")
        # Blanks after a comma are no part of a name; all else is.
        synonyms = tuple(name.strip() for name in names.split(","))
        if not (re.fullmatch("[0-9]{1,9}", number) and colon and all(synonyms)):
            raise InputError(
                f'label file {path}, line {line_number}: "{line[:60]}" is not of the form "7:dog,puppy": correct it'
            )
        if synonyms == (NO_CLASS,):
            continue
        key = int(number)
        if key in rows:
            raise InputError(
                f"label file {path}, line {line_number}: the number {key} is there already: remove one"
            )
        rows[key] = synonyms
    if not rows:
        raise InputError(f"label file {path} has no class")
    return rows
