"""Reads a mapping of a table's YAML file key by key, with the type of each value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clipself_seg.errors import InputError, nearest, shown


class Part:
    """A mapping in a table's file, whose keys are taken one by one; errors say where they stand."""

    def __init__(self, place: str, content: Any) -> None:
        self.place = place
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise InputError(f"{place} must be a mapping with names as keys, got {shown(content)}")
        self.content = content
        self.known: list[str] = []

    def take(self, key: str, kinds: Any, default: Any = None) -> Any:
        """Take a value of some types; an error if it is missing and has no default."""
        self.known.append(key)
        value = self.content.get(key, default)
        if value is None:
            raise InputError(f'{self.place}: "{key}" is missing')
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise InputError(f"{self.place}: {key} cannot be {shown(value)}: correct its type")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Take a string."""
        return str(self.take(key, str, default))

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """Take one of some strings, by default the first."""
        value = self.text(key, choices[0])
        if value not in choices:
            raise InputError(
                f"{self.place}: {key} cannot be {shown(value)}; {nearest(value, choices)}"
            )
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """Take a mapping, by default an empty one."""
        return Part(f"{self.place}: {key}", self.take(key, dict, {})).content

    def texts(self, key: str) -> dict[str, str]:
        """Take a mapping with its values as strings."""
        return {name: str(value) for name, value in self.mapping(key).items()}

    def each(self, key: str, read: Callable[[Part], Any], needed: bool = True) -> dict[str, Any]:
        """Take a mapping of mappings, each read by a function."""
        content = self.take(key, dict, None if needed else {})
        sections = {name: Part(f"{self.place}: {key}: {name}", of) for name, of in content.items()}
        return {name: read(section) for name, section in sections.items()}

    def pair(self, key: str, value: Any) -> tuple[str, str]:
        """Read an entry of a list: two strings."""
        if not isinstance(value, list) or len(value) != 2 or not all(map(_is_text, value)):
            raise InputError(
                f"{self.place}: {key} cannot have {shown(value)}: give pairs of columns, [across, up]"
            )
        return value[0], value[1]

    def words(self, key: str) -> tuple[str, ...]:
        """Take a list of strings."""
        value = self.take(key, list, [])
        if not all(map(_is_text, value)):
            raise InputError(f"{self.place}: {key} cannot be {shown(value)}: give a list of names")
        return tuple(value)

    def listed(self, key: str) -> list[Part]:
        """Take a list of mappings."""
        content = self.take(key, list, [])
        return [Part(f"{self.place}: {key}: {n}", of) for n, of in enumerate(content, 1)]

    def finish(self) -> None:
        """Refuse keys that were not taken."""
        for key in self.content:
            if key not in self.known:
                raise InputError(
                    f"{self.place}: unknown key {shown(key)}; {nearest(key, self.known)}"
                )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
