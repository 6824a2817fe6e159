"""CLIP with dense features: `load_clip`, `save_clip` and the model that they handle.

Shapes: B images, K texts, n regions of an image, E embedding, h x w grid of the dense features.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.pretrained import download_pretrained
from torch import Tensor, nn

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.read import STORED_METADATA, Checkpoint, read_checkpoint
from clipself_seg.checkpoints.shipped import SHIPPED, SHIPPED_TAGS
from clipself_seg.clip import region_pooling
from clipself_seg.clip.build import Architecture, find_architecture
from clipself_seg.clip.weights import LAYOUTS, LoadReport, choose_activation, load_strictly
from clipself_seg.errors import InputError, nearest
from clipself_seg.files import atomic_path

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

logger = logging.getLogger(__name__)


@functools.cache
def _tokenizer() -> open_clip.tokenizer.SimpleTokenizer:
    return open_clip.tokenizer.SimpleTokenizer()


class DenseCLIP(nn.Module):
    """A CLIP whose image tower also gives an embedding for every location, box and mask.

    Attributes:
        name: open_clip's model name.
        visual: the image tower; text: the text tower; logit_scale: log of the temperature's inverse.
        image_size: side in pixels of the images that `encode_image` was trained on.
        patch_size: stride in pixels of the dense features.
        mean, std: RGB normalisation of pixels in [0, 1].
        report: what `load_clip` did, None for random weights.
    """

    def __init__(
        self,
        *,
        architecture: Architecture,
        quick_gelu: bool,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        super().__init__()
        self.architecture, self.quick_gelu = architecture, quick_gelu
        self.name, self.embed_dim = architecture.name, architecture.embed_dim
        self.visual = architecture.build_image_tower(quick_gelu)
        self.text = architecture.build_text_tower(quick_gelu)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.mean, self.std = tuple(mean), tuple(std)
        self.report: LoadReport | None = None

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images of `encode_image`."""
        return self.visual.image_size

    @property
    def patch_size(self) -> int:
        """Stride in pixels of the dense features."""
        return self.visual.patch_size

    @property
    def context_length(self) -> int:
        """Tokens of a text, start and end included."""
        return self.text.context_length

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 RGB (B, 3, H, W) on any device -> normalised float32."""
        return self.normalise(images.float() / 255)

    def normalise(self, pixels: Tensor) -> Tensor:
        """RGB (..., 3, H, W) in [0, 1] -> what the image tower takes, of the same type."""
        shift, scale = (pixels.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (pixels - shift) / scale

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """open_clip's tokens of K texts (a string is one), (K, context_length) int64."""
        return _tokenizer()([texts] if isinstance(texts, str) else list(texts), self.context_length)

    def token_count(self, text: str) -> int:
        """How many tokens a text has, its beginning and end included; `tokenize` cuts what is too long."""
        return len(_tokenizer().encode(text)) + 2

    def encode_image(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), unit length, of normalised images (B, 3, S, S)."""
        return F.normalize(self.visual(images), dim=-1)

    def encode_text(self, texts: str | Sequence[str] | Tensor) -> Tensor:
        """Text embeddings (K, E), unit length, of K strings (or one) or token ids (K, context_length)."""
        tokens = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        return F.normalize(self.text(tokens.to(self.logit_scale.device)), dim=-1)

    def encode_dense(self, images: Tensor) -> Tensor:
        """Dense features (B, E, h, w), unit length per location, of normalised images (B, 3, H, W).

        Raises:
            InputError: the patch does not divide H or W.
        """
        return F.normalize(self.visual.dense(images), dim=1)

    def encode_boxes(
        self, images: Tensor, boxes: Sequence[Tensor], masked_attention: bool = False
    ) -> Tensor:
        """Embeddings (sum n, E), unit length, of boxes read from the dense features.

        Args:
            images: (B, 3, H, W), normalised.
            boxes: for each image (n, 4), XYXY relative to the image, in [0, 1].
            masked_attention: read by class-token copies that see only the box (ViT; the official code's ``v1``).

        Raises:
            InputError: not one (n, 4) for each image.
        """
        grid = self._grid(images)
        region_pooling.check_regions("boxes", boxes, images, (4,))
        if masked_attention:
            cells = [region_pooling.box_cells(b.to(images.device), grid) for b in boxes]
            return F.normalize(self.visual.observe_regions(images, cells), dim=-1)
        weights = [region_pooling.box_weights(b.to(images.device), grid) for b in boxes]
        return self._pool(images, weights)

    def encode_masks(
        self, images: Tensor, masks: Sequence[Tensor], masked_attention: bool = False
    ) -> Tensor:
        """Embeddings (sum n, E), unit length, of masks (n, h, w) at token resolution.

        An empty mask gives a zero vector; with `masked_attention` it sees the class token only.

        Raises:
            InputError: not one (n, h, w) for each image.
        """
        grid = self._grid(images)
        region_pooling.check_regions("masks", masks, images, grid)
        masks = [mask.to(images.device) for mask in masks]
        if masked_attention:
            regions = self.visual.observe_regions(images, [mask.bool() for mask in masks])
            return F.normalize(regions, dim=-1)
        return self._pool(images, [region_pooling.mask_weights(mask) for mask in masks])

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def _pool(self, images: Tensor, weights: list[Tensor]) -> Tensor:
        dense = self.encode_dense(images)
        pooled = [region_pooling.pool(f, w) for f, w in zip(dense, weights, strict=True)]
        none = dense.new_zeros(0, self.embed_dim, dtype=torch.float32)  # a batch of no images
        return F.normalize(torch.cat([none, *pooled]), dim=-1)

    def weights_hash(self) -> str:
        """12 hexadecimal digits that follow from every weight of the model."""
        return hash_tensors(self.state_dict())


def load_clip(name: str, weights: str | os.PathLike[str] | None) -> DenseCLIP:
    """A CLIP in evaluation mode, float32, on the CPU.

    Args:
        name: open_clip's model name, or ``ViT-Mini-8`` of the mini world.
        weights: path of a checkpoint in any published layout; an open_clip tag (downloads); a tag of
            the shipped weights (``mini``, ``mini-clipself``, ``mini-clipself-proposals``); or None
            for random weights from torch's current seed.

    Raises:
        InputError: unknown name or tag, or a file that is missing, damaged, unsafe, of another model
            or without finite numbers.
    """
    if not isinstance(name, str):
        raise InputError(f'{name!r} is no name of a CLIP model; give one such as "ViT-B-16"')
    architecture = find_architecture(name)
    if weights is None:
        return DenseCLIP(architecture=architecture, quick_gelu=architecture.quick_gelu).eval()
    if not (given := os.fspath(weights)):
        raise InputError(f'no weights "" for {name}: give a file or a tag, or None for random ones')
    checkpoint, published = _locate(architecture, given)
    quick_gelu, notes = choose_activation(architecture, checkpoint, published)
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
        clip = DenseCLIP(
            architecture=architecture,
            quick_gelu=quick_gelu,
            mean=checkpoint.mean or published.get("mean", CLIP_MEAN),
            std=checkpoint.std or published.get("std", CLIP_STD),
        )
    report = load_strictly(clip, architecture, checkpoint)
    clip.report = LoadReport(**{**vars(report), "notes": report.notes + notes})
    logger.info("%s", clip.report)
    return clip.eval()


def _locate(architecture: Architecture, weights: str) -> tuple[Checkpoint, dict[str, Any]]:
    if weights in SHIPPED_TAGS:
        layers = [read_checkpoint(SHIPPED / f"{s}.safetensors") for s in SHIPPED_TAGS[weights]]
        merged = {k: v for layer in layers for k, v in layer.tensors.items()}
        return dataclasses.replace(layers[0], path=layers[-1].path, tensors=merged), {}
    tags = open_clip.list_pretrained_tags_by_model(architecture.name)
    looks_like_path = os.sep in weights or Path(weights).suffix or Path(weights).exists()
    if looks_like_path and weights not in tags:
        return read_checkpoint(weights), {}
    published = open_clip.get_pretrained_cfg(architecture.name, weights)
    if not published:
        known = tags + list(SHIPPED_TAGS)
        raise InputError(
            f'no weights "{weights}" for {architecture.name}: neither a file nor a tag; '
            f"{nearest(weights, known)}"
        )
    try:
        path = download_pretrained(published)
    except Exception as error:  # urllib, requests and hub errors share no base class
        raise InputError(
            f'cannot download weights "{weights}" of {architecture.name} '
            f"({type(error).__name__}); fetch the file yourself and give its path"
        ) from error
    return read_checkpoint(path), published


def save_clip(
    clip: DenseCLIP,
    path: str | os.PathLike[str],
    layout: str = "official",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint that `load_clip` reads, atomically.

    Args:
        clip: the model.
        path: ``.safetensors``, or ``.pt`` for the wrapped form that CLIPSelf's own code reads.
        layout: ``official`` (OpenAI's, EVA's and CLIPSelf's names) or ``open_clip``.
        dtype: precision of the stored weights.
    """
    if layout not in LAYOUTS:
        raise InputError(f'no layout "{layout}"; {nearest(layout, LAYOUTS)}')
    path = Path(path)
    native = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in clip.state_dict().items()
    }
    tensors = LAYOUTS[layout](native, clip.architecture.separate_text)
    facts = {
        "name": clip.name,
        "activation": "quick_gelu" if clip.quick_gelu else "gelu",
        "pixel_mean": json.dumps(clip.mean),
        "pixel_std": json.dumps(clip.std),
    }
    if path.suffix == ".safetensors":
        import safetensors.torch

        with atomic_path(path) as temporary:
            # One key: safetensors writes several in random order, and equal models give equal files.
            told = {STORED_METADATA: json.dumps(facts, sort_keys=True)}
            safetensors.torch.save_file(tensors, temporary, metadata=told)
    elif path.suffix in {".pt", ".pth"}:
        # A file, not its path: torch would write the random temporary name into the archive.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save({"epoch": 0, "state_dict": tensors, **facts}, file)
    else:
        raise InputError(f"cannot write {path}: name it .safetensors or .pt")
