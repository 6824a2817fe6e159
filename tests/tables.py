"""Reads tables of logs back."""

import re


def cells(table: str) -> list[list[str]]:
    """Cells of each line of a table in tabulate's style "simple", the headings first."""
    lines = table.splitlines()
    (rule,) = (line for line in lines if line and set(line) <= {"-", " "})
    columns = [dashes.span() for dashes in re.finditer("-+", rule)]
    return [
        [line[begin:end].strip() for begin, end in columns] for line in lines if line is not rule
    ]
