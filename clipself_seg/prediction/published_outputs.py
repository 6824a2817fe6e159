"""Computes outputs that others have published of real weights by this project's towers and models of masks.

`outputs` computes what a row names, and `compare` puts the numbers beside the published ones, so that a test may give
both a row and a model of its own.

Shapes: E width of the embedding, K texts, L tokens, D width of the tower, Q queries, C classes, h x w of masks, S side
of the image as a tower sees it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipself_seg.checkpoints.locate import HUB
from clipself_seg.checkpoints.mask_models import mask_model_folder
from clipself_seg.checkpoints.published_outputs import Row
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip import CLIP, load_clip
from clipself_seg.data.images import read_image
from clipself_seg.data.mappers.regions import WholeImageMapper
from clipself_seg.data.mappers.samples import chw
from clipself_seg.models.panoptic.mask_models import OtherMasks, load_mask_model


def load_model(name: str, clip: str) -> CLIP | OtherMasks:
    """The model of a row.

    Args:
        name: of the zoo, or repository of the hub.
        clip: name of the CLIP of a repository; empty for a model that finds masks.

    Raises:
        InputError: as `load_clip` and `mask_model_folder`.
    """
    if name in zoo():
        return load_clip(name)
    return load_clip(clip, HUB + name) if clip else load_mask_model(mask_model_folder(name))


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
    """A quantity of texts (K, E), of an image (E,) or (L, D), or of both (K,); features are not of unit length."""
    match row.quantity:
        case "text features":
            return clip.embed_texts(row.texts)
        case "text embeddings":
            return clip.encode_text(row.texts)
    pixels = _pixels(row, clip, path)
    match row.quantity:
        case "image features":
            return clip.embed_images(pixels)[0]
        case "image embedding":
            return clip.encode_image(pixels)[0]
        case "tokens":
            return _tokens(clip.visual, pixels)[0]
        case "patch tokens":
            tower: Any = clip.visual
            patches_LD: Tensor = tower.final_norm(_tokens(tower, pixels))[0, tower.prefix :]
            return patches_LD
    cosines_K = clip.encode_text(row.texts) @ clip.encode_image(pixels)[0]
    logits_K = clip.logit_scale.exp() * cosines_K + (clip.logit_bias or 0)
    if row.quantity == "probabilities":
        return logits_K.softmax(0)
    assert row.quantity == "logits", row.quantity
    return logits_K


def _tokens(tower: Any, pixels: Tensor) -> Tensor:
    """Tokens behind the last block (1, L, D)."""
    tokens_BLD: Tensor
    tokens_BLD, extras, _ = tower.embed(pixels)
    for block in tower.blocks:
        tokens_BLD = block(tokens_BLD, *extras)
    return tokens_BLD


def _pixels(row: Row, clip: CLIP, path: Path) -> Tensor:
    """An image as a tower sees it, (1, 3, S, S), without what is no whole patch, as a convolution leaves it out."""
    own = {"image_size": clip.image_size, "squash": clip.squash, "filter": clip.filter}
    mapper = WholeImageMapper(**{**own, **row.pixels})
    image = mapper({"file_name": str(path), "image_id": 0, "label": 0})["image"]
    side = image.shape[1] // clip.patch_size * clip.patch_size
    return clip.preprocess(image[None, :, :side, :side])


# Quantities that a method of transformers' processor makes of what the network says.
SEGMENTATIONS = ("panoptic_segmentation", "instance_segmentation")


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
    if row.quantity in SEGMENTATIONS:  # class and score (n, 2)
        merge = getattr(model.processor, f"post_process_{row.quantity}")
        segments = merge(said, target_sizes=[(height, width)])[0]["segments_info"]
        return torch.tensor([[one["label_id"], one["score"]] for one in segments]).reshape(-1, 2)
    of_queries: Tensor = said[row.quantity][0]  # (Q, C) or (Q, h, w)
    return of_queries
