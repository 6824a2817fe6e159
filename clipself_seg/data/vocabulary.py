"""Vocabularies: class names with synonyms, what is known about each class, and how they are written.

One grammar: in text that somebody types, "," separates classes and "|" synonyms, as in "dog|puppy, grass".
An entry of a list or of a JSON file is one class, whose synonyms "|" or ", " separates. The names of a
`Vocabulary` are never split again. FC-CLIP's and OpenSeg's label files, lines of `ID:NAME,NAME,...`, take the place of
a data set's own names.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipself_seg.errors import InputError, check_keys, nearest
from clipself_seg.files import read_json, read_text

if TYPE_CHECKING:
    from clipself_seg.data.examples import ClassExamples

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "vocabularies"
TEXT_FILES = (".txt", ".json")
# The names of each class.
Names = tuple[tuple[str, ...], ...]
# CAT-Seg's class files -> the vocabularies that have their words.
CLASS_FILES = {
    "coco.json": "coco_stuff_171",
    "ade150.json": "ade20k_150",
    "ade847.json": "ade20k_847",
    "pc59.json": "pascal_context_59",
    "pc459.json": "pascal_context_459",
    "voc20.json": "voc_20",
    "voc20b.json": "voc_20b_prompts",
}
NO_TEXT = re.compile("[\ud800-\udfff]")  # bytes of the command line that are no UTF-8
MOST_LETTERS = 500  # of a name: the time of a tokenizer grows with their square
NO_CLASS = "invalid_class_id"  # the name in a row of a label file that is none
LIST_KEYS = {"name", "about", "allow_duplicate_names", "classes"}
# What a class can say in JSON, and the type it has to have.
CLASS_KEYS: dict[str, type] = {
    "index": int,
    "dataset_id": int,
    "names": list,
    "isthing": bool,
    "seen": bool,
    "frequency": str,
    "catseg_name": str,
}


@dataclass(frozen=True)
class VocabularyClass:
    """One class.

    Attributes:
        names: its synonyms as the data set spells them; the first is the class's own name.
        dataset_id: its number in the annotation files.
        isthing: thing or stuff; None where the data set does not tell.
        seen: whether training shows it (a base class); None where there is no such split.
        frequency: LVIS's ``r``, ``c`` or ``f``; rare classes are the unseen ones.
        catseg_name: CAT-Seg's entry of the class, where it is not `names` joined by ", ".
    """

    names: tuple[str, ...]
    dataset_id: int
    isthing: bool | None = None
    seen: bool | None = None
    frequency: str | None = None
    catseg_name: str | None = None


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of classes; the position of a class is its label in the whole project."""

    name: str
    classes: tuple[VocabularyClass, ...]
    about: str = ""
    examples: tuple[ClassExamples, ...] = ()

    @classmethod
    def from_names(cls, names: Sequence[str], name: str = "custom") -> Vocabulary:
        """A vocabulary of names alone; synonyms are separated as in ``dog|puppy`` or ``dog, puppy``.

        Raises:
            InputError: as `class_names`, or two classes with the same first name.
        """
        origin = f'vocabulary "{name}"'
        classes = _entries(class_names(names, origin=origin))
        return parse_vocabulary({"name": name, "classes": classes}, origin)

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
            InputError: examples without names, one that cannot be read, a class without any, or a weight that is none.
        """
        from clipself_seg.data.examples import ClassExamples, as_example

        if not isinstance(examples, Mapping):
            form = '{"screw": ["ref.jpg#120,40,80,80"]}'
            raise InputError(f"examples are of names, as in {form}, got {reprlib.repr(examples)}")
        if not 0 < weight <= 1:
            raise InputError(f"the weight of examples is {weight}: give one above 0, at most 1")
        kept = {example.names: example for example in self.examples}
        classes = list(self.classes)
        for name, given in examples.items():
            own = own_words([name], f'the example "{name}"').classes[0]
            if isinstance(given, str) or not given:
                raise InputError(
                    f'"{name}" needs a list of examples, such as ["ref.jpg#120,40,80,80"]'
                )
            entry = next((c for c in classes if _plain_names(c) & _plain_names(own)), None)
            if entry is None:
                number = 1 + max((c.dataset_id for c in classes), default=-1)
                classes.append(entry := replace(own, dataset_id=number))
            names = tuple(dict.fromkeys((*entry.names, *_names_of(entry, True))))
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
    def names(self) -> tuple[str, ...]:
        """The first name of every class."""
        return tuple(entry.names[0] for entry in self.classes)

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
        """From a class's number in the annotation files to its position."""
        return {entry.dataset_id: index for index, entry in enumerate(self.classes)}

    def _mask(self, key: str) -> np.ndarray:
        values = [getattr(entry, key) for entry in self.classes]
        if None in values:
            silent = self.names[values.index(None)]
            raise InputError(
                f'vocabulary "{self.name}" does not say "{key}" of "{silent}": '
                f'add "{key}": true or false to every class'
            )
        return np.array(values, dtype=bool)


# The vocabulary of a data set, or its name or file, for `load_vocabulary`.
NamedVocabulary = Vocabulary | str


def class_names(
    words: Vocabulary | Sequence[str | Sequence[str]],
    *,
    all_synonyms: bool = True,
    catseg_names: bool = False,
    nested: bool = False,
    origin: str = "the vocabulary",
) -> Names:
    """The names of each class, by the one grammar of everything that takes a list of classes.

    Args:
        words: a vocabulary, or an entry for each class; "|" or ", " separates the synonyms of a string.
        all_synonyms: all names of a class, else the first alone.
        catseg_names: CAT-Seg's own entry of a vocabulary's class takes the place of all its names.
        nested: an entry may be a sequence of synonyms, which are taken as they are.
        origin: what a message calls the words.

    Raises:
        InputError: no class, an empty name, an entry of another type, or one string in place of a list.
    """
    if isinstance(words, str):
        raise InputError(f'"{words}" is one string: give a list of names, such as ["{words}"]')
    entries: Sequence[str | Sequence[str]]
    if isinstance(words, Vocabulary):
        entries = [_names_of(entry, catseg_names) for entry in words.classes]
        nested = True
    else:
        entries = list(words)
    if all(isinstance(entry, str) and not entry.strip(" |,") for entry in entries):
        raise InputError(f'{origin} is empty: give at least one class name, such as "dog"')
    names = tuple(
        _synonyms(entry, nested, f"class {index} of {origin}")
        for index, entry in enumerate(entries)
    )
    return names if all_synonyms else tuple(synonyms[:1] for synonyms in names)


def examples_of(words: object) -> tuple[ClassExamples, ...]:
    """The examples of a vocabulary; other words have none."""
    return words.examples if isinstance(words, Vocabulary) else ()


def _names_of(entry: VocabularyClass, catseg_names: bool) -> tuple[str, ...]:
    # CAT-Seg's own entry stands for the whole class, also where the data set has synonyms.
    own = entry.catseg_name if catseg_names else None
    return tuple(own.split(", ")) if own else entry.names


def _synonyms(entry: str | Sequence[str], nested: bool, origin: str) -> tuple[str, ...]:
    names: tuple[str, ...] | None = None
    if isinstance(entry, str):
        names = tuple(name.strip() for name in re.split(r"\||, ", entry))
    elif nested and isinstance(entry, Iterable):
        names = tuple(entry)
    if names is None or not all(isinstance(name, str) for name in names):
        wrong = "is no name and no list of names" if nested else "is no string"
    elif not names or not all(name.strip() for name in names):
        wrong = "has an empty name"
    elif wrong := _unusable(names):
        pass
    else:
        return names
    raise InputError(
        f"{origin} is {reprlib.repr(entry)}, which {wrong}: give a name, with synonyms "
        'as in "dog|puppy"'
    )


def _unusable(names: Iterable[str]) -> str:
    """Why some names cannot be given to a tokenizer; empty if they can."""
    for name in names:
        if NO_TEXT.search(name):
            return "is no text in UTF-8"
        if len(name) > MOST_LETTERS:
            return f"has a name of {len(name)} letters, of at most {MOST_LETTERS}"
    return ""


# Class names as somebody gives them: text or a file (`read_words`), a list, or a vocabulary.
Words = Vocabulary | Sequence[str] | str | os.PathLike[str]


def as_vocabulary(words: Words) -> Vocabulary:
    """The vocabulary that a user gave; `read_words` reads text and files, `own_words` a list."""
    words = read_given(words)
    return words if isinstance(words, Vocabulary) else own_words(words)


def read_given(words: Vocabulary | Sequence[Any] | os.PathLike[str]) -> Vocabulary | Sequence[Any]:
    """Words as they are given, but text and files as `read_words` reads them."""
    return read_words(os.fspath(words)) if isinstance(words, str | os.PathLike) else words


def read_words(text: str) -> Vocabulary:
    """The vocabulary that a user typed.

    Args:
        text: words ("dog|puppy, grass, sky"), the name of a built-in vocabulary, or a file: .txt
            with a class a line (or separated by commas, "#" starts a comment), or .json as for
            `load_vocabulary`.

    Returns:
        A vocabulary called "custom", where it is not a known one or a JSON file.

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
            f'If it is a word, put a comma behind it; a file ends in {" or ".join(TEXT_FILES)}.'
        )
    words = text.split(",")
    return own_words(words[:-1] if len(words) > 1 and not words[-1].strip() else words)


def own_words(entries: Sequence[str], origin: str = "the vocabulary") -> Vocabulary:
    """A vocabulary called "custom" of a user's own classes, whatever case they are written in.

    Args:
        entries: one for each class, see `class_names`.
        origin: what a message calls them.

    Raises:
        InputError: as `class_names`, or one word twice.
    """
    if isinstance(entries, Mapping) or not isinstance(entries, Iterable):
        raise InputError(
            f'{reprlib.repr(entries)} is no text and no list of words: give such as "dog, grass"'
        )
    if not isinstance(entries, str):
        entries = list(entries)  # a generator could be read but once
    classes = class_names(entries, origin=origin)
    earlier: dict[str, str] = {}
    for entry, synonyms in zip(entries, classes):
        for name in synonyms:
            if name.casefold() in earlier:
                places = f'"{earlier[name.casefold()][:80]}" and in "{entry.strip()[:80]}"'
                raise InputError(f'{origin} has "{name[:80]}" twice, in {places}: remove one')
            earlier[name.casefold()] = entry.strip()
            if ";" in name:
                logger.warning('"%s" is one class: separate classes by commas', name[:80])
    return parse_vocabulary({"name": "custom", "classes": _entries(classes)}, origin)


def _read_text(path: Path) -> list[str]:
    text = read_text(path, "vocabulary file")
    lines = (line.split("#")[0].strip().rstrip(",") for line in text.splitlines())
    return [word for line in lines if line for word in line.split(",")]


def _entries(classes: Names) -> list[dict[str, object]]:
    """Classes as files have them, of names alone."""
    return [{"names": list(names)} for names in classes]


def available_vocabularies() -> list[str]:
    """Names of the built-in vocabularies."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def class_entries(name: NamedVocabulary) -> list[dict[str, Any]]:
    """The classes of a built-in vocabulary as its file has them, without checks and warnings."""
    if isinstance(name, Vocabulary):
        return _entries(class_names(name))
    entries: list[dict[str, Any]] = read_json(FOLDER / f"{name}.json", "vocabulary file")["classes"]
    return entries


def load_vocabulary(name_or_path: NamedVocabulary | Path) -> Vocabulary:
    """Read and check a vocabulary.

    Args:
        name_or_path: a built-in name (see `available_vocabularies`) or a JSON file: a list of
            names as for `Vocabulary.from_names`, or an object like the built-in ones. A vocabulary
            is returned as it is.

    Raises:
        InputError: no such vocabulary, or its content cannot be used.
    """
    if isinstance(name_or_path, Vocabulary):
        return name_or_path
    path = Path(name_or_path)
    if path.suffix.lower() != ".json":
        path = FOLDER / f"{name_or_path}.json"
        if not path.exists():
            hint = nearest(str(name_or_path), available_vocabularies())
            raise InputError(
                f'no vocabulary "{name_or_path}": {hint}\n'
                "A file of your own is named by its path, which has to end in .json."
            )
    content = read_json(path, "vocabulary file")
    if isinstance(content, list):
        # CAT-Seg's own list of ADE20K's classes has names twice, and is used as it is.
        content = {
            "name": path.stem,
            "classes": _entries(class_names(content, origin=str(path))),
            "allow_duplicate_names": path.name in CLASS_FILES,
        }
    return parse_vocabulary(content, origin=str(path))


def parse_vocabulary(content: object, origin: str) -> Vocabulary:
    """The vocabulary of a JSON file's content, see `load_vocabulary`; `origin` is what a message calls it."""
    if not isinstance(content, dict) or not isinstance(content.get("classes"), list):
        raise InputError(
            f'{origin}: expected a list of names, or an object with a list "classes" of '
            '{"names": [...], ...}'
        )
    check_keys(content, LIST_KEYS, origin)
    for key in ("name", "about"):
        if not isinstance(content.get(key, ""), str):
            raise InputError(f'{origin}: "{key}" has to be text, got {reprlib.repr(content[key])}')
    if not content["classes"]:
        raise InputError(f"{origin}: has no classes: name at least one")
    classes = [
        _parse_class(entry, index, f"{origin}: class {index}")
        for index, entry in enumerate(content["classes"])
    ]
    with_ids = sum("dataset_id" in entry for entry in content["classes"])
    if with_ids not in (0, len(classes)):
        raise InputError(
            f'{origin}: {with_ids} of {len(classes)} classes have a "dataset_id": give all or none'
        )
    if ids := _repeated(str(entry.dataset_id) for entry in classes):
        raise InputError(f'{origin}: "dataset_id" used more than once: {_shorten(ids)}')
    # Classes of one name get one prompt, so that no model can tell them apart.
    if names := _repeated(entry.names[0].strip().lower() for entry in classes):
        message = f"{origin}: first names used more than once: "
        if not content.get("allow_duplicate_names"):
            raise InputError(
                f"{message}{_shorten(names)}: rename one, or put another synonym first; a vocabulary file may set "
                '"allow_duplicate_names": true'
            )
        logger.warning(message + ", ".join(names))
    name = content.get("name", Path(origin).stem)
    return Vocabulary(name=name, classes=tuple(classes), about=content.get("about", ""))


def _parse_class(entry: object, index: int, origin: str) -> VocabularyClass:
    if not isinstance(entry, dict):
        raise InputError(
            f'{origin}: expected an object like {{"names": ["dog"]}}, got {reprlib.repr(entry)}'
        )
    check_keys(entry, CLASS_KEYS, origin)
    for key, value in entry.items():
        if type(value) is not CLASS_KEYS[key]:
            wanted = CLASS_KEYS[key].__name__
            raise InputError(
                f'{origin}: "{key}" has to be of type {wanted}, got {reprlib.repr(value)}'
            )
    names = entry.get("names", [])
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(
            f'{origin}: needs "names", a list of one or more words, got {reprlib.repr(names)}'
        )
    if wrong := _unusable(names):
        raise InputError(f"{origin} is {reprlib.repr(names)}, which {wrong}: correct it")
    if entry.get("index", index) != index:
        raise InputError(f'{origin}: "index" is {entry["index"]}: sort the classes by index')
    fields = {key: value for key, value in entry.items() if key not in ("index", "names")}
    if "frequency" in fields:
        fields.setdefault("seen", fields["frequency"] != "r")
    # A list without numbers of its own counts its classes.
    fields.setdefault("dataset_id", index)
    return VocabularyClass(names=tuple(names), **fields)


def _repeated(values: Iterable[str]) -> list[str]:
    """Values that are there more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def _shorten(words: list[str]) -> str:
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")


def class_list(path: str) -> str:
    """What `load_vocabulary` reads in place of a file of CAT-Seg's that is not there: the built-in one."""
    name = CLASS_FILES.get(Path(path).name)
    return name if name and not Path(path).exists() else path


def read_class_json(path: str | Path) -> list[str]:
    """CAT-Seg's form of a class list: a flat JSON list; synonyms are separated by ", ".

    Where there is no such file, one of the name of CAT-Seg's own is made of the built-in vocabulary.

    Raises:
        InputError: no such file, or anything but a list of names.
    """
    path = Path(path)
    if path.name in CLASS_FILES and not path.exists():
        entries = class_entries(CLASS_FILES[path.name])
        return [entry.get("catseg_name") or ", ".join(entry["names"]) for entry in entries]
    content = read_json(path, "list of class names")
    names = content if isinstance(content, list) else []
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(
            f'{path}: has to hold a list of class names, such as ["dog, puppy", "sky"]'
        )
    return names


def seen_by_plain_spelling(test: Vocabulary, train: Vocabulary) -> np.ndarray:
    """Bool (K,): which of the K classes of `test` have a synonym that `train` has too.

    Names are compared in lower case, with hyphens and underscores as spaces. Nothing is understood:
    "wall" is not seen because of "wall-brick", nor "sofa" because of "couch".
    """
    return _with_a_name_of(test, train, _plain_names)


def seen_in_training(vocabulary: Vocabulary, trained: Vocabulary) -> np.ndarray:
    """Bool (K,): which of the K classes share a name with a class that training shows.

    Args:
        vocabulary: the K classes.
        trained: the training vocabulary; of one with novel classes, as OV-COCO's, those do not count.

    Names are compared as in `seen_by_plain_spelling`, for LVIS writes "dining_table" where COCO has "dining table".
    """
    shown = tuple(entry for entry in trained.classes if entry.seen is not False)
    return seen_by_plain_spelling(vocabulary, replace(trained, classes=shown))


def _plain_names(entry: VocabularyClass) -> set[str]:
    return {" ".join(re.sub("[-_]", " ", name).lower().split()) for name in entry.names}


def seen_by_exact_spelling(test: Vocabulary, train: Vocabulary) -> np.ndarray:
    """Bool (K,): which of the K classes of `test` have a synonym that is a string of `train`.

    The published rule of panoptic fusion: strings are compared as the files spell them, so case,
    plurals and blanks matter. Of OpenSeg's ADE20K-150 list COCO's 133 classes have seen 64.
    """
    return _with_a_name_of(test, train, lambda entry: set(entry.names))


def _with_a_name_of(
    test: Vocabulary, train: Vocabulary, names_of: Callable[[VocabularyClass], set[str]]
) -> np.ndarray:
    known = {name for entry in train.classes for name in names_of(entry)}
    return np.array([not known.isdisjoint(names_of(entry)) for entry in test.classes], bool)


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
