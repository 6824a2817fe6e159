"""Parses models and runs of a command line: a value alone, or NAME=value."""

from __future__ import annotations

from clipself_seg.errors import InputError


def name_and_value(text: str, kind: str, value: str, alone: bool) -> tuple[str, str]:
    """Splits a name from the value behind it; of a value that is typed alone the name is "".

    Args:
        text: a value, or a name, "=" and a value.
        kind: kind of the named things, for messages, such as "model".
        value: kind of the values, such as "weights".
        alone: the whole is a value although "=" may be in it, such as a file that is there.

    Raises:
        InputError: no name before "=", or no value.
    """
    if alone or "=" not in text:
        if text.strip():
            return "", text
    else:
        name, _, given = text.partition("=")
        if name.strip() and given.strip():
            return name, given
    raise InputError(f'"{text}" is no {kind}: give its {value}, or NAME={value}')
