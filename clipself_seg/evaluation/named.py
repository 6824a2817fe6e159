"""Parses models and runs of a command line: a value alone, or NAME=value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clipself_seg.errors import InputError


def by_name(
    typed: Sequence[str],
    kind: str,
    value: str,
    *,
    alone: Callable[[str], bool],
    name_of: Callable[[str], str] = str,
) -> dict[str, str]:
    """Values by name, in the order in which they are typed.

    Args:
        typed: each a value, or a name, "=" and a value.
        kind: kind of the named things, for messages, such as "model".
        value: kind of the values, such as "weights".
        alone: True if what has the sign in it is a value all the same, such as a file that is there.
        name_of: name of a value that is typed alone.

    Raises:
        InputError: no name before "=", no value, or one name twice.
    """
    values: dict[str, str] = {}
    for text in typed:
        name, separator, given = text.partition("=")
        whole = not separator or alone(text)
        if whole:
            name, given = name_of(text), text
        if not given.strip() or not (whole or name.strip()):
            raise InputError(f'"{text}" is no {kind}: give its {value}, or NAME={value}')
        if name in values:
            raise InputError(f'two {kind}s are called "{name}": give each its own, as NAME={value}')
        values[name] = given
    return values
