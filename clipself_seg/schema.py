"""Checks what users' files and requests contain against a schema, before anything else reads it.

A schema is one of

    a `Kind`                              a value that passes its test, such as `TEXT`
    [schema]                              a list, each item of which fits the schema
    {"name": schema, "other?": schema}    an object; a key that ends in "?" may be missing, further keys may be there
    `Each`                                an object with any number of keys of one kind

so `check(content, {"images": [{"id": WHOLE, "file_name?": TEXT}]}, path)` refuses a file in one sentence, such as
`a.json: images[3].id is "x", and has to be a whole number: correct it`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

from clipself_seg.errors import InputError, shown


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
        wanted: noun phrase for messages, such as "a whole number".
        test: tells whether a value is of this kind.
    """

    wanted: str
    test: Callable[[Any], bool]


class Each(NamedTuple):
    """An object whose keys are data, such as class numbers.

    Attributes:
        key: kind of every key.
        value: schema of every value.
    """

    key: Kind
    value: Schema


Schema: TypeAlias = "Kind | Each | Sequence[Schema] | Mapping[str, Schema]"


class Problem(NamedTuple):
    """The first value that does not fit a schema.

    Attributes:
        place: where it stands, such as "images[3].id"; "" for the whole content.
        given: the value shortened, or "missing".
        wanted: what it has to be.
    """

    place: str
    given: str
    wanted: str


def is_number(value: Any) -> bool:
    """Tells a number that is no bool, not NaN, and not larger than a float can be."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


TEXT = Kind("text", lambda value: isinstance(value, str))
WHOLE = Kind("a whole number", lambda value: type(value) is int)
COUNT = Kind("a whole number from 0 on", lambda value: type(value) is int and value >= 0)
NUMBER = Kind("a finite number", is_number)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
ANYTHING = Kind("anything", lambda value: True)


def texts(what: str = "texts") -> Kind:
    """The kind of a list of texts, which may be empty."""
    return Kind(
        f"a list of {what}",
        lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    )


def one_of(*values: object) -> Kind:
    """The kind of a value that is one of a few."""
    return Kind(" or ".join(map(repr, values)), lambda value: value in values)


def check(
    content: object, schema: Schema, origin: object, advice: str = "correct it", place: str = ""
) -> None:
    """Refuses content that does not fit a schema.

    Args:
        content: plain data, as JSON and YAML give it.
        schema: schema that it has to fit.
        origin: the file, for the message.
        advice: the way out for the user.
        place: where the content stands in the file, such as "annotations".

    Raises:
        InputError: names file, place, value, what is wanted and the way out.
    """
    problem = _problem(content, schema)
    if problem is None:
        return
    place = (place + problem.place).removeprefix(".")
    where = f"{origin}: {place}" if place else f"{origin}"
    raise InputError(f"{where} is {problem.given}, and has to be {problem.wanted}: {advice}")


def _problem(value: Any, schema: Schema) -> Problem | None:
    """The first value that does not fit."""
    if isinstance(schema, Kind):
        return None if schema.test(value) else Problem("", shown(value), schema.wanted)
    if isinstance(schema, list):
        if not isinstance(value, list):
            return Problem("", shown(value), "a list")
        for index, item in enumerate(value):
            if problem := _problem(item, schema[0]):
                return problem._replace(place=f"[{index}]{problem.place}")
        return None
    if not isinstance(value, dict):
        return Problem("", shown(value), "an object")
    if isinstance(schema, Each):
        for key, item in value.items():
            if not schema.key.test(key):
                wanted = f"an object in which each key is {schema.key.wanted}"
                return Problem("", f"an object with the key {shown(key)}", wanted)
            if problem := _problem(item, schema.value):
                return problem._replace(place=f".{_key(key)}{problem.place}")
        return None
    for name, part in cast("Mapping[str, Schema]", schema).items():
        key = name.removesuffix("?")
        if key in value:
            if isinstance(part, Kind) and part.test(value[key]):
                continue  # without a call, for the objects of a large file
            if problem := _problem(value[key], part):
                return problem._replace(place=f".{key}{problem.place}")
        elif key == name:
            return Problem(f".{key}", "missing", _wanted(part))
    return None


def _key(key: object) -> str:
    return key if isinstance(key, str) and key.isidentifier() else shown(key)


def _wanted(schema: Schema) -> str:
    if isinstance(schema, Kind):
        return schema.wanted
    return "a list" if isinstance(schema, list) else "an object"
