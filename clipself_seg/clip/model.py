"""CLIP with dense features: the model, and `load_clip` and `save_clip` for its checkpoints.

Shapes: B images, K texts, n regions of an image, E width of the embedding, h x w grid of the dense
features.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.checkpoints.dense_feature import ANY, BY_TOKEN, DenseFeature, require_feature
from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.locate import is_remote, locate, published_file
from clipself_seg.checkpoints.read import STORED_METADATA, VARIANT, Checkpoint, read_checkpoint
from clipself_seg.checkpoints.zoo import (
    MINI_CLIPS,
    SHIPPED_TAGS,
    shipped_files,
    shipped_model,
    shipped_tags,
    zoo,
)
from clipself_seg.clip import region_pooling
from clipself_seg.clip.kind import CLIP_MEAN, CLIP_STD, Architecture
from clipself_seg.clip.kinds import find_architecture
from clipself_seg.clip.layers import packed_matrices
from clipself_seg.clip.runtime import constant, without_values
from clipself_seg.clip.tokenizers import Tokenizer
from clipself_seg.clip.weights import (
    LoadReport,
    as_written,
    choose_activation,
    dense_notes,
    fit_gate,
    load_strictly,
    to_layout,
)
from clipself_seg.data.images import fit_size, letterbox_image
from clipself_seg.errors import InputError, nearest
from clipself_seg.files import atomic_path

__all__ = ["CLIP_MEAN", "CLIP_STD", "DenseCLIP", "load_clip", "save_clip"]

logger = logging.getLogger(__name__)


class DenseCLIP(nn.Module):
    """CLIP whose image tower also has an embedding for every location, box and mask.

    Attributes:
        name: open_clip's model name.
        visual: image tower.
        text: text tower.
        logit_scale: logarithm of the factor of cosines.
        logit_bias: what is added to them before the sigmoid of towers that were trained with one; None for others.
        image_size: side in pixels of the square images of `encode_image`.
        patch_size: stride in pixels of the dense features.
        mean: mean of RGB pixels in [0, 1] that is subtracted from an image.
        std: standard deviation of RGB pixels in [0, 1] that an image is divided by.
        report: report of `load_clip`, None for random weights.
        distilled: dense feature that the weights were distilled for, which `save_clip` writes; `ANY` if for none.
    """

    def __init__(
        self,
        *,
        architecture: Architecture,
        quick_gelu: bool,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dense: DenseFeature = BY_TOKEN,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.quick_gelu = quick_gelu
        self.name = architecture.name
        self.embed_dim = architecture.embed_dim
        self.visual = architecture.kind.build_image(architecture, quick_gelu)
        self.visual.choose_dense(dense)
        self.distilled = ANY
        self.text = architecture.kind.build_text(architecture, quick_gelu)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(architecture.kind.scale)))
        bias = architecture.logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        self.mean = tuple(mean or architecture.kind.mean)
        self.std = tuple(std or architecture.kind.std)
        self.report: LoadReport | None = None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.logit_scale.device

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
        """Number of tokens of a text, start and end included."""
        return self.text.context_length

    @property
    def similarity_scale(self) -> Tensor:
        """Factor of cosines where regions are compared with classes, at most `TowerKind.largest_scale`; a scalar."""
        return self.logit_scale.exp().clamp(max=self.architecture.kind.largest_scale)

    def check_side(self, side: int, what: str = "input side") -> None:
        """Refuse a side of the input that the patch does not divide, before anything is read or trained.

        Args:
            side: in pixels.
            what: the side or its key, for the message.

        Raises:
            InputError: names the two nearest sides that work.
        """
        patch = self.patch_size
        if side < patch or side % patch:
            below = max(side // patch, 1) * patch
            raise InputError(
                f"{what} {side} is not a multiple of the patch of {self.name}, {patch} pixels; take "
                f"{below} or {below + patch}"
            )

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalised images, float32, of uint8 RGB images (B, 3, H, W) on any device."""
        return self.normalise(images.float() / 255)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalised images of RGB pixels (..., 3, H, W) in [0, 1], in the pixels' type."""
        shift, scale = (constant(v, pixels)[:, None, None] for v in (self.mean, self.std))
        return (pixels - shift) / scale

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """Tokens (K, context_length) int64 of K texts; a string is one text.

        Raises:
            InputError: the tower's tokenizer is not there.
        """
        listed = [texts] if isinstance(texts, str) else texts
        return self._tokenizer()(listed, self.context_length)

    def token_count(self, text: str) -> int:
        """Number of tokens of a text, start and end included; `tokenize` truncates longer texts."""
        return self._tokenizer().count(text)

    def _tokenizer(self) -> Tokenizer:
        return self.architecture.kind.tokenizer(self.architecture)

    def encode_image(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), unit length, of normalised images (B, 3, S, S)."""
        return F.normalize(self.visual(images), dim=-1)

    def encode_text(self, texts: str | Sequence[str] | Tensor) -> Tensor:
        """Text embeddings (K, E), unit length, of K strings, one string, or tokens (K, context_length)."""
        tokens = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        return F.normalize(self.text(tokens), dim=-1)

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
            boxes: boxes (n, 4) of each image, XYXY relative to the image, in [0, 1].
            masked_attention: use mask tokens, copies of the class token that attend only to the box (ViT
                only; ``v1`` of the official code), in place of pooling.

        Raises:
            InputError: `boxes` is not one tensor (n, 4) for each image.
        """
        grid = self._grid(images)
        placed = region_pooling.check_regions("boxes", boxes, images, (4,))
        if masked_attention:
            return self._attend(images, [region_pooling.box_cells(b, grid) for b in placed])
        return self._pool(images, [region_pooling.box_weights(b, grid) for b in placed])

    def encode_masks(
        self, images: Tensor, masks: Sequence[Tensor], masked_attention: bool = False
    ) -> Tensor:
        """Embeddings (sum n, E), unit length, of masks read from the dense features.

        An empty mask has a zero vector; with `masked_attention` its mask token attends to the class
        token only.

        Args:
            images: (B, 3, H, W), normalised.
            masks: masks (n, h, w) of each image at the resolution of the tokens.
            masked_attention: use mask tokens in place of pooling, as in `encode_boxes`.

        Raises:
            InputError: `masks` is not one tensor (n, h, w) for each image.
        """
        grid = self._grid(images)
        placed = region_pooling.check_regions("masks", masks, images, grid)
        if masked_attention:
            return self._attend(images, [mask.bool() for mask in placed])
        return self._pool(images, [region_pooling.mask_weights(mask) for mask in placed])

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def _attend(self, images: Tensor, cells: list[Tensor]) -> Tensor:
        """Unit embeddings (sum n, E) of regions with the given boolean cells (n, h, w), by masked attention."""
        return F.normalize(self.visual.masked_attention(images, cells), dim=-1)

    def _pool(self, images: Tensor, weights: list[Tensor]) -> Tensor:
        """Unit embeddings (sum n, E) of regions with the given cell weights (n, h, w)."""
        dense = self.encode_dense(images)
        pooled = [region_pooling.pool(f, w) for f, w in zip(dense, weights, strict=True)]
        # torch.cat needs a tensor in a batch of no images.
        none = dense.new_zeros(0, self.embed_dim, dtype=torch.float32)
        return F.normalize(torch.cat([none, *pooled]), dim=-1)

    def pair_probabilities(self, embeddings: Tensor, text_KE: Tensor) -> Tensor:
        """How probably each embedding and each text belong together, (..., K), each pair by itself (SigLIP).

        Args:
            embeddings: (..., E) of images, boxes, masks or cells, unit length.
            text_KE: of texts, unit length.

        Raises:
            InputError: the model was trained by a softmax, which says nothing of one pair.
        """
        if self.logit_bias is None:
            raise InputError(
                f"{self.name} has no logit bias: it compares an image with several texts, by a softmax of cosines"
            )
        return (self.logit_scale.exp() * embeddings @ text_KE.T + self.logit_bias).sigmoid()

    def weights_hash(self) -> str:
        """Hash of all weights of the model, 12 hexadecimal digits."""
        return hash_tensors(self.state_dict())


def load_clip(
    name: str,
    weights: str | os.PathLike[str] | None = "",
    *,
    dense: DenseFeature | None = None,
    override: bool = False,
) -> DenseCLIP:
    """Load a CLIP in evaluation mode, in float32 on the CPU.

    Args:
        name: name of weights in the zoo, such as ``eva02-vitb16``, or of shipped ones (``mini``, ``mini-clipself``,
            ``mini-clipself-proposals``, ``mini-eva``). With `weights` it is open_clip's model name, or ``ViT-Mini-8``.
        weights: path of a checkpoint in any published layout; an open_clip tag, a name of the zoo or an
            address, or ``hf-hub:org/name`` (downloaded); a tag of the shipped weights; or None for random weights
            from torch's current seed. Left out, those that `name` names.
        dense: what the dense features are; None for what the weights were distilled for, and token for a CLIP that
            was not distilled.
        override: read weights that were distilled for another dense feature all the same.

    Raises:
        InputError: the name or tag is unknown, or the file is missing, damaged, unsafe, of another
            model or dense feature, or has numbers that are not finite.
    """
    if not isinstance(name, str):
        raise InputError(f'{name!r} is no name of a CLIP model; give one such as "ViT-B-16"')
    if weights == "":
        name, weights = _named(name)
    architecture = find_architecture(name)
    if weights is None:
        return DenseCLIP(
            architecture=architecture,
            quick_gelu=architecture.quick_gelu,
            dense=dense or BY_TOKEN,
        ).eval()
    if not (given := os.fspath(weights)):
        raise InputError(
            f"{name} names no weights: give a file or a tag with it, None for random ones, or a name of weights, "
            "such as eva02-vitb16, alone"
        )
    checkpoint, published = _locate(architecture, given)
    if dense is None:
        dense = BY_TOKEN if checkpoint.dense == ANY else checkpoint.dense
    require_feature(dense, checkpoint.dense, checkpoint.path, override)
    architecture = as_written(architecture, checkpoint)
    quick_gelu, notes = choose_activation(architecture, checkpoint, published)
    with without_values():
        clip = DenseCLIP(
            architecture=architecture,
            quick_gelu=quick_gelu,
            mean=checkpoint.mean or published.get("mean"),
            std=checkpoint.std or published.get("std"),
            dense=dense,
        )
    checkpoint, gate_notes = fit_gate(clip.visual, checkpoint)
    report = load_strictly(clip, architecture, checkpoint)
    notes = report.notes + notes + gate_notes + dense_notes(dense, checkpoint.dense)
    clip.report = dataclasses.replace(report, notes=notes)
    clip.distilled = checkpoint.dense
    logger.info("%s", clip.report)
    return clip.eval()


def _named(name: str) -> tuple[str, str]:
    """Model and weights of a name that stands for both; no weights for any other."""
    if name in SHIPPED_TAGS:
        return shipped_model(name), name
    entry = zoo().get(name)
    if entry is None:
        return name, ""
    if not entry.model:
        raise InputError(f"{name} is no CLIP alone: load it by clipself_seg.load")
    return entry.model, name


def _locate(architecture: Architecture, weights: str) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint of a path, name, address or tag, and open_clip's settings of it if it is its tag."""
    if weights in SHIPPED_TAGS:
        layers = [read_checkpoint(path) for path in shipped_files(weights)]
        first, last = layers[0], layers[-1]
        rest = {k: v for k, v in first.tensors.items() if not k.startswith("visual.")}
        tensors = rest | last.tensors
        whole = dataclasses.replace(first, path=last.path, tensors=tensors, dense=last.dense)
        return (_original(whole) if weights in MINI_CLIPS else whole), {}
    weights = weights.removeprefix(f"{architecture.name}:")  # the zoo's names of open_clip's tags
    if os.sep in weights:  # no tag, for which open_clip would be imported
        return read_checkpoint(locate(weights)), {}
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture.name)
    if weights not in tags:
        looks_like_path = Path(weights).suffix or Path(weights).exists()
        if ":" in weights and weights in zoo():
            model = zoo()[weights].model
            raise InputError(
                f'weights "{weights}" are of {model}, not {architecture.name}: load that'
            )
        if weights in zoo() or is_remote(weights):
            checkpoint = read_checkpoint(locate(weights))
            if known := zoo().get(weights):
                activation = checkpoint.activation or known.activation or None
                checkpoint = dataclasses.replace(checkpoint, activation=activation)
            return (checkpoint if known is None or known.distilled else _original(checkpoint)), {}
        if looks_like_path:
            return read_checkpoint(weights), {}
    published = open_clip.get_pretrained_cfg(architecture.name, weights)
    if not published:
        shipped = [tag for tag in shipped_tags() if shipped_model(tag) == architecture.name]
        names = [entry.name for entry in zoo().values() if entry.model == architecture.name]
        raise InputError(
            f'no weights "{weights}" for {architecture.name}: neither a file nor a tag; '
            f"{nearest(weights, [*tags, *shipped, *names])}"
        )
    path = published_file(f"{architecture.name}:{weights}", published["hf_hub"])
    return _original(read_checkpoint(path)), published


def _original(checkpoint: Checkpoint) -> Checkpoint:
    """A published CLIP, which was distilled for no dense feature."""
    return dataclasses.replace(checkpoint, dense=ANY)


def save_clip(
    clip: DenseCLIP,
    path: str | os.PathLike[str],
    layout: str = "official",
    dtype: torch.dtype = torch.float32,
    part: str = "",
) -> None:
    """Write a checkpoint that `load_clip` reads, atomically.

    Args:
        clip: model to write.
        path: path of the file: ``.safetensors``, or ``.pt`` for the wrapped form of CLIPSelf's code.
        layout: ``official`` (OpenAI's, EVA's and CLIPSelf's names) or ``open_clip``.
        dtype: precision of the stored weights.
        part: ``visual.`` for the image tower alone, as the files are that are laid over `mini`.

    Raises:
        InputError: the layout or the suffix is unknown.
    """
    path = Path(path)
    native = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in packed_matrices(clip.state_dict()).items()
        if name.startswith(part)
    }
    tensors = to_layout(native, clip.architecture.kind, layout)
    metadata = {
        "name": clip.name,
        "activation": "quick_gelu" if clip.quick_gelu else "gelu",
        "pixel_mean": json.dumps(clip.mean),
        "pixel_std": json.dumps(clip.std),
        **clip.distilled.entries(),
    }
    if clip.architecture.variant:
        metadata[VARIANT] = clip.architecture.variant
    if path.suffix == ".safetensors":
        import safetensors.torch

        with atomic_path(path) as temporary:
            # One key: safetensors writes several in random order, and equal models give equal files.
            text = json.dumps(metadata, sort_keys=True)
            safetensors.torch.save_file(tensors, temporary, metadata={STORED_METADATA: text})
    elif path.suffix in {".pt", ".pth"}:
        # A file, not its path: torch would write the random temporary name into the archive.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save({"epoch": 0, "state_dict": tensors, **metadata}, file)
    else:
        raise InputError(f"cannot write {path}: name it .safetensors or .pt")


def whole_image_features(clip: DenseCLIP, image: np.ndarray, side: int) -> np.ndarray:
    """Unit-length dense features of an image without the padding, (E, h, w).

    Args:
        clip: model; the features are computed on its device.
        image: (H, W, 3) uint8 RGB.
        side: longest side in pixels that the image is resized to, a multiple of `clip.patch_size`. The
            last row or column of cells may be partly padding.
    """
    square = letterbox_image(image, side).transpose(2, 0, 1).copy()
    images = clip.preprocess(torch.from_numpy(square)[None].to(clip.device))
    with torch.no_grad():
        dense: np.ndarray = clip.encode_dense(images)[0].cpu().numpy()
    fitted = fit_size(image.shape[1], image.shape[0], side)
    width, height = (-(-pixels // clip.patch_size) for pixels in fitted)
    return dense[:, :height, :width]
