"""The notation of shards of images in DATASETS.TRAIN: "wds:" and a path with braces, or a pipe.

Braces are WebDataset's and the shell's: {000..099} counts, {a,b} lists. "pipe:" runs a command of the user's own, whose
output is a tar file. A configuration may come from anybody, so a file of one has no pipes.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from clipself_seg.errors import InputError, shown

MARK, PIPE = "wds:", "pipe:"
MOST_SHARDS = 2_000_000
_BRACES = re.compile(r"\{([0-9]{1,12})\.\.([0-9]{1,12})\}|\{([^{},]*(?:,[^{},]*)+)\}")


def is_shards(name: object) -> bool:
    """Whether a name of DATASETS.TRAIN stands for shards."""
    return isinstance(name, str) and name.startswith(MARK)


def shards_of(names: Iterable[str]) -> list[str]:
    """Paths and pipes that names of DATASETS.TRAIN stand for, in their order.

    Args:
        names: each with "wds:" in front.

    Raises:
        InputError: a name that stands for nothing, for too many, for an address, or for one shard twice.
    """
    shards = [shard for name in names for shard in _expanded(name.removeprefix(MARK))]
    for shard in shards:
        if re.match("(https?|s3|gs|hdfs)://?", shard):
            raise InputError(
                f"DATASETS.TRAIN has the address {shown(shard)}: give files, or on the command line a pipe that "
                'fetches it, such as "wds:pipe:curl -sfL https://..."'
            )
    if len(set(shards)) < len(shards):
        twice = Counter(shards).most_common(1)[0][0]
        raise InputError(f"DATASETS.TRAIN has the shard {shown(twice)} twice: leave one out")
    return shards


def refuse_pipes(names: Iterable[object], source: Callable[[], str]) -> None:
    """Refuse commands in a configuration's file.

    Args:
        names: values of DATASETS.TRAIN.
        source: says which file, for the message.

    Raises:
        InputError: one is a pipe.
    """
    for name in names:
        if is_shards(name) and any(one.startswith(PIPE) for one in shards_of([str(name)])):
            raise InputError(
                f"{source()}: DATASETS.TRAIN has the command {shown(name)}, which is run only where it is typed: "
                "give DATASETS.TRAIN on the command line, or files"
            )


def _expanded(text: str) -> Iterator[str]:
    """All that a text with braces stands for, the last braces counting fastest."""
    texts: list[str] = []
    choices: list[range | list[str]] = []
    place, count = 0, 1
    for match in _BRACES.finditer(text):
        texts.append(text[place : match.start()])
        choices.append(_choices(match))
        place, count = match.end(), count * len(choices[-1])
    if count > MOST_SHARDS or not text.strip() or text.strip() == PIPE:
        raise InputError(
            f"DATASETS.TRAIN has {shown(MARK + text)}, which stands for {count if text else 0} shards: give "
            f'1 to {MOST_SHARDS}, such as "wds:/data/{{00000..00099}}.tar"'
        )
    widths = [_width(match) for match in _BRACES.finditer(text)]
    for chosen in itertools.product(*choices):
        parts = (f"{one:0{width}}" if width else str(one) for one, width in zip(chosen, widths))
        yield "".join(itertools.chain(*zip(texts, parts))) + text[place:]


def _choices(match: re.Match[str]) -> range | list[str]:
    if match[3] is not None:
        return match[3].split(",")
    first, last = int(match[1]), int(match[2])
    return range(first, last + 1) if first <= last else range(first, last - 1, -1)


def _width(match: re.Match[str]) -> int:
    """Number of digits of a counter, 0 where there are no zeros in front."""
    ends = (match[1] or "", match[2] or "")
    padded = any(end.startswith("0") and len(end) > 1 for end in ends)
    return max(map(len, ends)) if padded else 0
