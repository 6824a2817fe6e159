"""The kind of dense feature that weights were distilled for: its name, its entry in files, which kinds are compatible.

What each of them computes is in `clipself_seg.clip.tower`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from clipself_seg.errors import InputError, known, shown

TOKEN = "token"
GATED = "gated_multi_value"
KINDS = (TOKEN, "value", "multi_value", GATED)
OF_SEVERAL_BLOCKS = ("multi_value", GATED)
ANY_NAME = "any"  # what files say of a CLIP that was not distilled
MOST_BLOCKS = 1000  # far above the depth of any tower
KIND_ENTRY = "dense_feature"
BLOCKS_ENTRY = "dense_feature_blocks"


@dataclasses.dataclass(frozen=True)
class DenseFeature:
    """A choice of `KINDS`, or `ANY`.

    Attributes:
        kind: name.
        blocks: number of last blocks whose values are added; 1 for kinds that read one block.

    Raises:
        InputError: there is no such kind, or less than one block.
    """

    kind: str = TOKEN
    blocks: int = 3

    def __post_init__(self) -> None:
        if self.kind != ANY_NAME:
            known(self.kind, KINDS, "dense feature")
        if type(self.blocks) is not int or not 1 <= self.blocks <= MOST_BLOCKS:
            raise InputError(
                f"{shown(self.blocks)} blocks of a dense feature: give a number from 1 to the tower's depth"
            )
        if self.kind not in OF_SEVERAL_BLOCKS:
            object.__setattr__(self, "blocks", 1)

    @property
    def gated(self) -> bool:
        """True if a gate weighs the heads, which is a part of the weights."""
        return self.kind == GATED

    def __str__(self) -> str:
        return (
            f"{self.kind} of {self.blocks} blocks" if self.kind in OF_SEVERAL_BLOCKS else self.kind
        )

    def entries(self) -> dict[str, str]:
        """Entries about it in a CLIP's file, beside its tensors."""
        return {KIND_ENTRY: self.kind, BLOCKS_ENTRY: str(self.blocks)}

    def entries_but_of_token(self) -> dict[str, str]:
        """Entries about it in the file of a model that was trained on a CLIP; none for `token`."""
        return {} if self == DenseFeature() else self.entries()

    def options(self) -> str:
        """The keys of a configuration that choose it, with their values."""
        blocks = f" MODEL.CLIP.DENSE_BLOCKS {self.blocks}" if self.kind in OF_SEVERAL_BLOCKS else ""
        return f"MODEL.CLIP.DENSE {self.kind}{blocks}"


BY_TOKEN = DenseFeature()
ANY = DenseFeature(ANY_NAME)
"""Of weights that were distilled for none, such as a published CLIP: they are read as any."""


def stated_feature(stored: Mapping[str, object], path: Path) -> DenseFeature:
    """The dense feature that a file says its weights are for; `token` where it says nothing.

    Args:
        stored: what the file has beside its tensors, of anybody.
        path: the file, for messages.

    Raises:
        InputError: it says something that no file of this project says.
    """
    kind, blocks = stored.get(KIND_ENTRY), stored.get(BLOCKS_ENTRY, "1")
    if kind is None:
        return DenseFeature()
    count = int(blocks) if isinstance(blocks, str) and re.fullmatch("[0-9]{1,4}", blocks) else 0
    try:
        return DenseFeature(kind if isinstance(kind, str) else "", count)
    except InputError:
        raise InputError(
            f"{path}: its dense feature is {shown(kind)} of {shown(blocks)} blocks, which is not valid; "
            "fetch it again"
        ) from None


def feature_of_run(run: Mapping[str, object], path: Path) -> DenseFeature:
    """The dense feature that a training ran with, `token` if it was before there were others.

    Args:
        run: full keys of its configuration -> values, as its checkpoint has them.
        path: the checkpoint, for messages.

    Raises:
        InputError: they are none.
    """
    blocks = str(run.get("MODEL.CLIP.DENSE_BLOCKS", 1))
    stated = {KIND_ENTRY: run.get("MODEL.CLIP.DENSE"), BLOCKS_ENTRY: blocks}
    return stated_feature(stated, path)


def require_feature(
    wanted: DenseFeature, stated: DenseFeature, source: object, override: bool = False
) -> None:
    """Refuses weights that were distilled for another dense feature than they are to be read as.

    Args:
        wanted: dense feature that they are to be read as.
        stated: dense feature that they were distilled for.
        source: the file, for the message.
        override: they are read all the same.

    Raises:
        InputError: names both, and the way out.
    """
    if override or stated in (wanted, ANY):
        return
    forced = "MODEL.CLIP.DENSE_OVERRIDE True (override=True of load_clip)"
    said, remedy = str(stated), f"{stated.options()}; or, if the two are to be compared, {forced}"
    if stated == BY_TOKEN:
        said += " (which files without the entry are)"
        remedy = f"{forced} if it is an original CLIP, {stated.options()} if it was distilled"
    raise InputError(
        f"{source} is for the dense feature {said}, and MODEL.CLIP.DENSE is {wanted}: set {remedy}"
    )
