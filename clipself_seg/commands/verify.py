"""Outputs of real weights that others have published, computed anew: `clipself-seg weights verify`.

``published_outputs.yaml`` has the rows. `outputs` computes what a row names by this project's towers and models of
masks, and `compare` puts the numbers beside the published ones, so that a test may give both a row and a model of its
own.

Shapes: E width of the embedding, K texts, L tokens, D width of the tower, Q queries, C classes, h x w of masks.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tabulate import tabulate
from torch import Tensor

from clipself_seg.checkpoints import locate
from clipself_seg.checkpoints.download import NotFetched, check_file, digest_at_first, download
from clipself_seg.checkpoints.mask_models import mask_model_folder
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip import CLIP, load_clip
from clipself_seg.data.images import read_image
from clipself_seg.data.mappers.regions import WholeImageMapper
from clipself_seg.data.mappers.samples import chw
from clipself_seg.errors import InputError
from clipself_seg.models.panoptic.mask_models import OtherMasks, load_mask_model

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


@torch.no_grad()
def outputs(row: Row, model: CLIP | OtherMasks, path: Path) -> Tensor:
    """The quantity of a row, computed by a model of an image, which is not read where the row names none."""
    return _masks(row, model, path) if isinstance(model, OtherMasks) else _clip(row, model, path)


def compare(row: Row, quantity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of a quantity beside the published ones of a row, and whether each agrees, of one shape.

    Numbers that the quantity lacks are NaN here, and differ.
    """
    published = torch.tensor(row.expected, dtype=torch.float64)
    here = torch.full_like(published, torch.nan)
    own = quantity[tuple(map(slice, published.shape))]
    here[tuple(map(slice, own.shape))] = own.double().cpu()
    return here, published, (here - published).abs() <= row.tolerance


def _clip(row: Row, clip: CLIP, path: Path) -> Tensor:
    raw = row.quantity.endswith(" features")  # as a tower gives them, not of unit length
    if row.quantity.startswith("text "):  # (K, E)
        return clip.embed_texts(row.texts) if raw else clip.encode_text(row.texts)
    pixels = _pixels(row, clip, path)
    if row.quantity.startswith("image "):  # (E,)
        return (clip.embed_images(pixels) if raw else clip.encode_image(pixels))[0]
    if "tokens" in row.quantity:
        tower: Any = clip.visual
        tokens_BLD, extras, _ = tower.embed(pixels)
        for block in tower.blocks:
            tokens_BLD = block(tokens_BLD, *extras)
        # (L, D) behind the last block, or those of the patches behind the norm
        own: Tensor = tower.final_norm(tokens_BLD)[:, tower.prefix :]
        return own[0] if row.quantity == "patch tokens" else tokens_BLD[0]
    assert row.quantity in ("logits", "probabilities"), row.quantity
    cosines_K = clip.encode_text(row.texts) @ clip.encode_image(pixels)[0]
    logits_K = clip.logit_scale.exp() * cosines_K + (clip.logit_bias or 0)
    return logits_K.softmax(0) if row.quantity == "probabilities" else logits_K


def _pixels(row: Row, clip: CLIP, path: Path) -> Tensor:
    """An image as a tower sees it, (1, 3, S, S), without what is no whole patch, as a convolution leaves it out."""
    own = {"image_size": clip.image_size, "squash": clip.squash, "filter": clip.filter}
    mapper = WholeImageMapper(**{**own, **row.pixels})
    image = mapper({"file_name": str(path), "image_id": 0, "label": 0})["image"]
    side = image.shape[1] // clip.patch_size * clip.patch_size
    return clip.preprocess(image[None, :, :side, :side])


def _masks(row: Row, model: OtherMasks, path: Path) -> Tensor:
    image = chw(read_image(path))
    pixels = model.pixels(image)
    height, width = image.shape[1:]
    if row.point:  # (3,) or (3, h, w), that of the highest IoU first
        scale = torch.tensor([pixels.shape[3] / width, pixels.shape[2] / height])
        points = (scale * torch.tensor(row.point))[None, None, None]
        said = model.network(pixel_values=pixels, input_points=points)
        best: Tensor = said[row.quantity][0, 0, said.iou_scores[0, 0].argsort(descending=True)]
        return best
    said = model.network(pixel_values=pixels)
    if row.quantity.endswith("_segmentation"):  # class and score (n, 2)
        merge = getattr(model.processor, f"post_process_{row.quantity}")
        segments = merge(said, target_sizes=[(height, width)])[0]["segments_info"]
        return torch.tensor([[one["label_id"], one["score"]] for one in segments]).reshape(-1, 2)
    of_queries: Tensor = said[row.quantity][0]  # (Q, C) or (Q, h, w)
    return of_queries


def read_table() -> tuple[list[Row], dict[str, dict[str, str]]]:
    """The rows, and the images by name, of ``published_outputs.yaml``."""
    content = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return [Row(**row) for row in content["rows"]], content["images"]


def main(names: Sequence[str], every: bool, folder: Path | None) -> int:
    """Computes the rows of weights, prints them beside the published numbers; returns 1 if one differs, else 0.

    Args:
        names: of the zoo, or repositories of the hub.
        every: True for all weights that are on this machine.
        folder: with images that need not be fetched; None for none.

    Raises:
        InputError: no name, one without published outputs, or weights or images that cannot be fetched.
    """
    rows, images = read_table()
    of = {name: [row for row in rows if name in row.models] for row in rows for name in row.models}
    if every:
        names = list(filter(_is_here, of))
    names = [name.removeprefix(locate.HUB) for name in names]
    if not names or {*names} - {*of}:
        what = (
            f"no published outputs are known of {', '.join(names)}"
            if names
            else "nothing to verify"
        )
        raise InputError(f"{what}: name or fetch weights that have some: {', '.join(of)}")
    # Before weights: an image that is missing is said in a moment.
    used = {row.image for name in names for row in of[name] if row.image}
    paths = {image: _image_file(images[image], folder) for image in sorted(used)}
    agree = True
    for name in names:
        model = _load(name, of[name][0].clip)
        for row in of[name]:
            path = paths.get(row.image, Path())
            agree &= _say(name, row, path.name, compare(row, outputs(row, model, path)))
    sys.stdout.write("all agree\n" if agree else "some differ\n")
    return 0 if agree else 1


def _say(name: str, row: Row, image: str, numbers: tuple[Tensor, Tensor, Tensor]) -> bool:
    """Prints the numbers of a row, as `compare` gives them; returns True if all agree."""
    body = [
        (here, published, abs(here - published), row.tolerance, "ok" if agrees else "DIFFERS")
        for here, published, agrees in zip(*(each.flatten().tolist() for each in numbers))
    ]
    headings = ("here", "published", "difference", "tolerance", "")
    table = tabulate(body, headings, "simple", floatfmt=(".5f", ".5f", ".1e", "g"))
    inputs = ", ".join(filter(None, [image, *row.texts]))
    sys.stdout.write(f"{name}: {row.quantity} of {inputs}; {row.source}\n{table}\n\n")
    return bool(numbers[2].all())


def _is_here(name: str) -> bool:
    """True for weights that are on this machine."""
    if name in zoo():
        return locate.present_file(zoo()[name]) is not None
    repository = locate.hub_name(locate.HUB + name)
    return any(locate.present_folder(repository, [file]) for file in locate.FILES)


def _load(name: str, clip: str) -> CLIP | OtherMasks:
    if name in zoo():
        return load_clip(name)
    return load_clip(clip, locate.HUB + name) if clip else load_mask_model(mask_model_folder(name))


def _image_file(image: Mapping[str, str], folder: Path | None) -> Path:
    """The file of an image, of a user's folder or ours, fetched if need be.

    Raises:
        InputError: it cannot be fetched, or is another one; says where to put it.
    """
    address, sha256 = image["address"], image.get("sha256", "")
    own = locate.weights_folder() / "images"
    path = (folder or own) / address.rpartition("/")[2]
    if not path.exists():
        path = own / path.name
        unknown = "" if sha256 else ", of which nobody has published a sha256"
        sys.stderr.write(f"fetching an image, {address}{unknown}, into {own}\n")
        try:
            download(address, path, sha256=sha256)
        except NotFetched as error:
            raise NotFetched(f"{error}: fetch it by hand, and save it as {path}") from None
    check_file(path, None, sha256 or digest_at_first(path), f"{path}, the image of {address},")
    return path
