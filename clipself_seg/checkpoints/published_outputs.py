"""Outputs of real weights that others have published: the rows and images of ``published_outputs.yaml``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from clipself_seg.checkpoints.download import NotFetched, check_file, digest_at_first, download
from clipself_seg.checkpoints.locate import HUB, weights_folder
from clipself_seg.checkpoints.needs import UNKNOWN, Part
from clipself_seg.checkpoints.zoo import YAML_LOADER, Entry, zoo

TABLE = Path(__file__).resolve().parent.parent / "published_outputs.yaml"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Numbers that somebody has published; ``published_outputs.yaml`` explains them.

    Attributes:
        models: names of the weights.
        quantity: name of what was computed.
        expected: the beginning of the quantity, nested lists of as many dimensions.
        tolerance: largest difference of a number.
        source: where they stand, and what is left open there.
        clip: name of the CLIP of a repository; empty for a model that finds masks.
        image: name of the image; empty for texts alone.
        pixels: "image_size", "squash" and "filter" of the resized image that are not the model's own.
        texts: K texts.
        point: x and y in pixels, at which SAM 2 is asked.
    """

    models: Sequence[str]
    quantity: str
    expected: Sequence[Any]
    tolerance: float
    source: str
    clip: str = ""
    image: str = ""
    pixels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    texts: Sequence[str] = ()
    point: Sequence[int] = ()

    def values(self, name: str) -> dict[str, str]:
        """Keys and values of the configuration that stand for one of `models`, see `needs.fetch_needed`."""
        if entry := zoo().get(name):
            return {"MODEL.CLIP.NAME": entry.model, entry.key: name}
        if self.clip:
            return {"MODEL.CLIP.NAME": self.clip, "MODEL.CLIP.WEIGHTS": HUB + name}
        return {"MODEL.MASK_GENERATOR.SOURCE": "masks", "MODEL.MASK_GENERATOR.OUTPUTS": name}


class Image(NamedTuple):
    """An image that numbers were computed of.

    Attributes:
        address: to fetch it from.
        path: where it is, or is fetched to.
        sha256: hexadecimal digits; empty where nobody prints it.
    """

    address: str
    path: Path
    sha256: str = ""

    def missing(self) -> list[Part]:
        """What is to be fetched of it: itself, or nothing if it is here."""
        if self.path.exists():
            return []
        entry = Entry(
            name=f"the image {self.path.name}", file="", addresses=(self.address,), licence=UNKNOWN
        )
        return [Part(entry, f"{self.address} as {self.path}", self.fetch)]

    def fetch(self) -> None:
        """Fetches it.

        Raises:
            NotFetched: says where to put it.
            InputError: as `download`.
        """
        try:
            download(self.address, self.path, sha256=self.sha256)
        except NotFetched as error:
            raise NotFetched(f"{error}: fetch it by hand, and save it as {self.path}") from None

    def check(self) -> None:
        """Refuses a file that is another image than the published one, or than the one that came at first.

        Raises:
            InputError: as `check_file`.
        """
        sha256 = self.sha256 or digest_at_first(self.path)
        check_file(self.path, None, sha256, f"{self.path}, the image of {self.address},")


def read_table(folder: Path | None = None) -> tuple[list[Row], dict[str, Image]]:
    """The rows, and the images by name.

    Args:
        folder: with images that need not be fetched; None for none.
    """
    content = yaml.load(TABLE.read_text(encoding="utf-8"), Loader=YAML_LOADER)
    images = {}
    for name, stated in content["images"].items():
        file = stated["address"].rpartition("/")[2]
        own = weights_folder() / "images" / file
        given = None if folder is None else folder / file
        images[name] = Image(**stated, path=given if given and given.exists() else own)
    return [Row(**row) for row in content["rows"]], images
