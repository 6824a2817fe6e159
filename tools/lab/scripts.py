"""Scripts of tools/ with several commands, which the first word names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

from clipself_seg.commands.options import Command
from clipself_seg.errors import known, report_input_errors


@report_input_errors
def run_named(about: str, texts: Mapping[str, str], command: Callable[[str], Command]) -> int:
    """Run the command that the first word of ``sys.argv`` names, with the words behind it.

    Args:
        about: first line of the help text.
        texts: name of each command -> its text, whose first line is listed.
        command: gives the command of a name, which may import what the others do not need.

    Raises:
        InputError: the first word names none.
    """
    program, words = os.path.basename(sys.argv[0]), sys.argv[1:]
    if words[:1] in ([], ["-h"], ["--help"]):
        lines = [f"usage: {program} COMMAND [options]", "", about, ""]
        width = max(map(len, texts))
        lines += [f"  {name:{width}}  {text.splitlines()[0]}" for name, text in texts.items()]
        sys.stdout.write("\n".join([*lines, "", f"{program} COMMAND --help has its options.", ""]))
        return 0 if words else 2
    known(words[0], texts, "command")
    sys.argv = [f"{program} {words[0]}", *words[1:]]
    return command(words[0])(words[1:])
