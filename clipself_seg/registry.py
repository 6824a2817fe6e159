"""The tables in which methods stand by the name that a configuration or a result has for them."""

from __future__ import annotations

from typing import TypeVar, cast

from clipself_seg.errors import InputError

Value = TypeVar("Value")
Entered = TypeVar("Entered")


class Registry(dict[str, Value]):
    """Methods of one kind by name; those of this package and of others are entered alike."""

    def __init__(self, reserved: str = "") -> None:
        """
        Args:
            reserved: name that stands for no method; "" for none such.
        """
        super().__init__()
        self.reserved = reserved

    def enter(self, name: str, value: Entered) -> Entered:
        """Adds a method, and returns it.

        Raises:
            InputError: the name is taken.
        """
        if name in self or name == self.reserved:
            raise InputError(f'there is a "{name}" already: register yours by another name')
        self[name] = cast(Value, value)
        return value
