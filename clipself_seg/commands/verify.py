"""`clipself-seg weights verify`: outputs of real weights that others have published, computed anew.

All that is missing is said, and fetched, before torch is imported.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from clipself_seg.checkpoints import locate, needs
from clipself_seg.checkpoints.mask_models import MASK_MODELS
from clipself_seg.checkpoints.published_outputs import Row, read_table
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

AGREES, DIFFERS, LEFT_OUT = "agree", "differ", "not checked"  # of a row


def main(names: Sequence[str], every: bool) -> int:
    """Computes the rows of weights, and prints them beside the published numbers.

    Args:
        names: of the zoo, or repositories of the hub.
        every: True for all weights that are on this machine; what cannot be had of them is said, and left out.

    Returns:
        Exit status: 1 if a number differs, 2 if none does and a row was left out, else 0.

    Raises:
        InputError: no name, one without published outputs, or weights or images that cannot be fetched.
    """
    rows, images = read_table()
    of = {name: [row for row in rows if name in row.models] for row in rows for name in row.models}
    if every:
        names = list(filter(_is_here, of))
    names = [name.removeprefix(locate.HUB) for name in names]
    names = [MASK_MODELS[name].repository if name in MASK_MODELS else name for name in names]
    if not names or {*names} - {*of}:
        known = f"no published outputs are known of {', '.join(names)}" if names else "none is here"
        raise InputError(f"{known}: name or fetch weights that have some: {', '.join(of)}")
    used = {row.image: images[row.image] for name in names for row in of[name] if row.image}
    configurations = {name: of[name][0].values(name) for name in names}
    # Name of an image or of weights, or title of a row -> why it cannot be had.
    lost: dict[str, str] = {}
    noting = functools.partial(_noting, lost if every else None)
    parts = [needs.part_of(image) for image in used.values() if not locate.own_file(image)]
    for name, values in configurations.items():
        with noting(name):
            parts += needs.missing_parts(values)
    if every:
        needs.say_parts(parts)
    else:
        needs.fetch_parts(parts, lambda: list(map(needs.require_packages, configurations.values())))
    paths = dict[str, Path]()
    for name, image in used.items():
        with noting(name):
            paths[name] = locate.fetch(image)
    from clipself_seg.prediction.published_outputs import compare, load_model, outputs  # seconds

    verdicts = []
    for name in names:
        with noting(name):
            model = load_model(name, of[name][0].clip)
        for row in of[name]:
            image_file = Path(used[row.image].file).name if row.image else ""
            inputs = ", ".join(filter(None, [image_file, *row.texts]))
            title = f"{name}: {row.quantity} of {inputs}; {row.source}"
            sys.stdout.write(f"{title}\n")
            why = lost.get(name) or lost.get(row.image)
            if not why:
                with noting(title):  # a tokenizer or package that it alone needs
                    quantity = outputs(row, model, paths.get(row.image, Path()))
                    verdicts.append(_say(row, compare(row, quantity)))
                why = lost.get(title)
            if why:
                sys.stdout.write(f"not checked: {why}\n\n")
                verdicts.append(LEFT_OUT)
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
    sys.stdout.write(f"{', '.join(counts)}\n")
    return 1 if DIFFERS in verdicts else 2 if LEFT_OUT in verdicts else 0


@contextlib.contextmanager
def _noting(lost: dict[str, str] | None, name: str) -> Iterator[None]:
    """Notes why an image, weights or a row cannot be had; raises it where nothing goes on without them."""
    try:
        yield
    except InputError as error:
        if lost is None:
            raise
        lost[name] = str(error)


def _say(row: Row, numbers: tuple[Tensor, Tensor, Tensor]) -> str:
    """Prints the numbers of a row, as `compare` gives them; returns `AGREES` or `DIFFERS`."""
    body = [
        (here, published, abs(here - published), row.tolerance, "ok" if agrees else "DIFFERS")
        for here, published, agrees in zip(*(each.flatten().tolist() for each in numbers))
    ]
    headings = ("here", "published", "difference", "tolerance", "")
    table = tabulate(body, headings, "simple", floatfmt=(".5f", ".5f", ".1e", "g"))
    sys.stdout.write(f"{table}\n\n")
    return AGREES if numbers[2].all() else DIFFERS


def _is_here(name: str) -> bool:
    """True for weights that are on this machine."""
    if name in zoo():
        return locate.present_file(zoo()[name]) is not None
    return locate.present_hub_file(locate.hub_name(locate.HUB + name)) is not None
