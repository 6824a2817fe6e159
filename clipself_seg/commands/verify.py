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
from typing import Any, NamedTuple, cast

import torch
import yaml
from tabulate import tabulate
from torch import Tensor

from clipself_seg.checkpoints import locate
from clipself_seg.checkpoints.download import NotFetched, check_file, download, file_sha256
from clipself_seg.checkpoints.mask_models import MASK_MODELS, MODEL_WEIGHTS, mask_model_folder
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip import CLIP, load_clip
from clipself_seg.clip.tower import TransformerTower
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
        clip: name of the CLIP of a repository; empty for a name of the zoo, and for a model that finds masks.
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


class Number(NamedTuple):
    """A number as it was computed here, the published one, and whether they differ by the tolerance at most."""

    here: float
    published: float
    agrees: bool


def outputs(row: Row, model: CLIP | OtherMasks, path: Path) -> Tensor:
    """The quantity of a row, computed by a model of an image, which is not read where the row names none."""
    with torch.no_grad():
        if isinstance(model, OtherMasks):
            return _of_masks(row, model, path)
        return _of_clip(row, model, path)


def compare(row: Row, quantity: Tensor) -> list[Number]:
    """The numbers of a row beside those of its quantity; what the quantity lacks is not a number."""
    expected = torch.tensor(row.expected, dtype=torch.float64)
    here = torch.full_like(expected, torch.nan)
    own = quantity[tuple(map(slice, expected.shape))]
    here[tuple(map(slice, own.shape))] = own.double().cpu()
    pairs = zip(here.flatten().tolist(), expected.flatten().tolist())
    return [Number(a, b, abs(a - b) <= row.tolerance) for a, b in pairs]


def _of_clip(row: Row, clip: CLIP, path: Path) -> Tensor:
    if row.quantity == "text features":  # (K, E), as the tower gives them
        return clip.embed_texts(row.texts)
    if row.quantity == "text embeddings":  # (K, E), of unit length
        return clip.encode_text(row.texts)
    pixels = _pixels(row, clip, path)
    if row.quantity == "image features":  # (E,), as the tower gives them
        return clip.embed_images(pixels)[0]
    if "tokens" in row.quantity:
        tower = cast(TransformerTower, clip.visual)
        tokens_BLD, extras, _ = tower.embed(pixels)
        for block in tower.stack:
            tokens_BLD = tower.run(block, tokens_BLD, *extras)
        if row.quantity == "tokens":  # (L, D), behind the last block
            return tokens_BLD[0]
        return tower.final_norm(tokens_BLD[0])[tower.prefix :]  # "patch tokens", behind the norm
    image_E = clip.encode_image(pixels)[0]
    if row.quantity == "image embedding":  # (E,), of unit length
        return image_E
    logits_K = clip.logit_scale.exp() * clip.encode_text(row.texts) @ image_E
    if clip.logit_bias is not None:
        logits_K = logits_K + clip.logit_bias
    return {"logits": logits_K, "probabilities": logits_K.softmax(0)}[row.quantity]  # (K,)


def _pixels(row: Row, clip: CLIP, path: Path) -> Tensor:
    """An image as a tower sees it, (1, 3, S, S), without what is no whole patch, as a convolution leaves it out."""
    own = {"image_size": clip.image_size, "squash": clip.squash, "filter": clip.filter}
    mapper = WholeImageMapper(**{**own, **row.pixels})
    image = mapper({"file_name": str(path), "image_id": 0, "label": 0})["image"]
    side = image.shape[1] // clip.patch_size * clip.patch_size
    return clip.preprocess(image[None, :, :side, :side])


def _of_masks(row: Row, model: OtherMasks, path: Path) -> Tensor:
    image = chw(read_image(path))
    height, width = image.shape[1:]
    pixels = model.pixels(image)
    if row.point:
        places = [row.point[0] * pixels.shape[3] / width, row.point[1] * pixels.shape[2] / height]
        points = torch.tensor(places)[None, None, None]
        said = model.network(pixel_values=pixels, input_points=points)
        iou, order = said.iou_scores[0, 0].sort(descending=True)
        # (3,), the highest first, and (h, w) of the highest
        return {"iou": iou, "best mask": said.pred_masks[0, 0, order[0]]}[row.quantity]
    said = model.network(pixel_values=pixels)
    kind = row.quantity.removesuffix(" segments")
    if kind in ("panoptic", "instance"):  # class and score (n, 2)
        merge = getattr(model.processor, f"post_process_{kind}_segmentation")
        segments = merge(said, target_sizes=[(height, width)])[0]["segments_info"]
        return torch.tensor([[one["label_id"], one["score"]] for one in segments]).reshape(-1, 2)
    # of all queries, (Q, C) or (Q, h, w)
    logits = {"class logits": "class_queries_logits", "mask logits": "masks_queries_logits"}
    return said[logits[row.quantity]][0]


def read_table() -> tuple[list[Row], dict[str, dict[str, str]]]:
    """The rows, and the images by name, of ``published_outputs.yaml``."""
    content = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return [Row(**row) for row in content["rows"]], content["images"]


def main(names: Sequence[str], every: bool, folder: Path | None) -> int:
    """Computes the rows of weights, prints them beside the published numbers; returns 1 if one differs, else 0.

    Args:
        names: of the zoo, repositories of the hub, or families of models that find masks.
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
    names = [MASK_MODELS[name].repository if name in MASK_MODELS else name for name in names]
    if not names or {*names} - {*of}:
        raise InputError(
            f"nothing to verify of {', '.join(names) or 'no name'}: published outputs are known of {', '.join(of)}"
        )
    # Before weights: an image that is missing is said in a moment.
    used = dict.fromkeys(row.image for name in names for row in of[name] if row.image)
    paths = {name: _image_file(images[name], folder) for name in used}
    agree = True
    for name in names:
        model = _load(name, of[name][0].clip)
        for row in of[name]:
            path = paths.get(row.image, Path())
            numbers = compare(row, outputs(row, model, path))
            _say(name, row, path.name, numbers)
            agree &= all(number.agrees for number in numbers)
    sys.stdout.write("all agree\n" if agree else "some differ\n")
    return 0 if agree else 1


def _say(name: str, row: Row, image: str, numbers: Sequence[Number]) -> None:
    """Prints the numbers of a row."""
    inputs = ", ".join(filter(None, [image, *row.texts]))
    body = [
        (here, published, abs(here - published), row.tolerance, "ok" if agrees else "DIFFERS")
        for here, published, agrees in numbers
    ]
    headings = ("here", "published", "difference", "tolerance", "")
    table = tabulate(body, headings, "simple", floatfmt=(".5f", ".5f", ".1e", "g"))
    sys.stdout.write(f"{name}: {row.quantity} of {inputs}; {row.source}\n{table}\n\n")


def _is_here(name: str) -> bool:
    """True for weights that are on this machine."""
    if name in zoo():
        return locate.present_file(zoo()[name]) is not None
    repository = locate.hub_name(locate.HUB + name)
    return locate.present_folder(repository, [MODEL_WEIGHTS]) is not None


def _load(name: str, clip: str) -> CLIP | OtherMasks:
    if clip:
        return load_clip(clip, locate.HUB + name)
    return load_clip(name) if name in zoo() else load_mask_model(mask_model_folder(name))


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
        sys.stderr.write(f"fetching an image, {address}, into {own}\n")
        try:
            download(address, path, sha256=sha256)
        except NotFetched as error:
            raise NotFetched(f"{error}: fetch it by hand, and save it as {path}") from None
    check_file(path, None, sha256, f"{path}, the image of {address},")
    if not sha256:
        digest = file_sha256(path)
        sys.stderr.write(f"{path}: no sha256 of it is published; this one has {digest}\n")
    return path
