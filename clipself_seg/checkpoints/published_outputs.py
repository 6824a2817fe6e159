"""Outputs of real weights that others have published: the rows and images of ``published_outputs.yaml``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from clipself_seg.checkpoints.locate import HUB
from clipself_seg.checkpoints.needs import UNKNOWN
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


def read_table() -> tuple[list[Row], dict[str, Entry]]:
    """The rows, and the images by name, which are files like weights."""
    content = yaml.load(TABLE.read_text(encoding="utf-8"), Loader=YAML_LOADER)
    images = {name: _image(**image) for name, image in content["images"].items()}
    return [Row(**row) for row in content["rows"]], images


def _image(address: str, sha256: str = "") -> Entry:
    file = address.rpartition("/")[2]
    place, name = f"images/{file}", f"the image {file}"
    return Entry(name=name, file=place, addresses=(address,), sha256=sha256, licence=UNKNOWN)
