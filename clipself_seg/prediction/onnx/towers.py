"""Exports a CLIP's two towers as ONNX, for images of any size, and checks them against torch by onnxruntime.

Shapes: B images, K texts, T tokens of a text, E width of the embedding, h x w grid of the dense
features.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from clipself_seg.clip import CLIP, VisionLanguageBackbone
from clipself_seg.clip.tokenizers import ClipTokenizer
from clipself_seg.clip.training_free import NONE
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_folder, write_json
from clipself_seg.prediction.onnx.graph import (
    Differences,
    Graph,
    export_graph,
    require_free,
    require_packages,
)
from clipself_seg.provenance import provenance

DENSE_FILE = "dense.onnx"
TEXT_FILE = "text.onnx"
METADATA_FILE = "export.json"
TOKENIZER_FILE = "tokenizer.json"
# Grid of the traced images. It is not square, so that it is the grid of no table of positions.
TRACED_GRID = (5, 7)
TEXTS = ("grass", "a photo of a red star.", "a photo of " + "a very " * 80 + "long text")


class DenseGraph(nn.Module):
    """Computes dense features (B, E, h, w) of unit length of normalised images (B, 3, H, W)."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor) -> Tensor:
        """Dense features of unit length, equal to those of `CLIP.encode_dense`."""
        return F.normalize(self.clip.dense(images), dim=1)


class TextGraph(nn.Module):
    """Computes text embeddings (K, E) of token ids (K, T), of unit length or as the tower gives them."""

    def __init__(self, clip: CLIP, unit: bool = True) -> None:
        super().__init__()
        self.text = clip.text
        self.unit = unit

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings of `CLIP.encode_text`; tokens behind the end of a text are computed too (`TextEncoder.whole`)."""
        embeddings = self.text.whole(tokens)
        return F.normalize(embeddings, dim=-1) if self.unit else embeddings


def export_towers(
    clip: VisionLanguageBackbone, folder: str | os.PathLike[str]
) -> dict[str, Differences]:
    """Writes both graphs, the metadata and CLIP's tokenizer, if the graphs compute what torch does.

    Weights of more than onnx keeps in one file (2 GB) go to a ``.data`` file beside it.

    Args:
        clip: in evaluation mode and float32, on the CPU.
        folder: for the files; made, and not there yet or empty.

    Returns:
        Differences of onnxruntime from torch, as fractions of the largest absolute feature: for each
        file by the shape of the input.

    Raises:
        InputError: a package is missing, the folder has something in it, the dense features are made by an attention
            without training, or a difference is larger than `TOLERANCE`; nothing is written then.
    """
    if not isinstance(clip, CLIP):
        raise InputError(
            f"the backbone {clip.name} reads sentences, which no exported graph does: export a model with its class "
            "names, to a file that ends in .onnx"
        )
    if clip.visual.attention != NONE:
        raise InputError(
            f"MODEL.CLIP.ATTENTION {clip.visual.attention} is not exported, only what MODEL.CLIP.DENSE names: "
            f"leave it {NONE}"
        )
    require_packages()
    folder = Path(folder)
    if not folder.is_dir() or any(folder.iterdir()):
        require_free([folder])
    with atomic_folder(folder) as temporary:
        graphs = {DENSE_FILE: dense_graph(clip), TEXT_FILE: text_graph(clip)}
        files = {name: export_graph(graph, temporary / name) for name, graph in graphs.items()}
        if (tokenizer := tokenizer_of(clip)) is not None:
            (temporary / TOKENIZER_FILE).write_text(tokenizer.to_json(), encoding="utf-8")
        write_json(temporary / METADATA_FILE, _metadata(clip, files))
    return {name: file["differences"] for name, file in files.items()}


def dense_graph(clip: CLIP) -> Graph:
    """Graph of the image tower, for any number of images and any sides that are multiples of the patch."""
    patch = clip.patch_size
    rows, columns = TRACED_GRID
    images = torch.zeros(2, 3, patch * rows, patch * columns)
    sizes = {0: Dim("images"), 2: patch * Dim("rows"), 3: patch * Dim("columns")}
    checks = ((batch,) for batch in _image_batches(clip))
    return Graph(DenseGraph(clip), {"images": images}, {"images": sizes}, ("features",), checks)


def text_graph(clip: CLIP, unit: bool = True) -> Graph:
    """Graph of the text tower, for any number of texts; embeddings of unit length unless `unit` is False."""
    tokens = clip.tokenize(TEXTS)
    checks = ((part,) for part in (tokens[:1], tokens[:2], tokens))
    sizes = {"tokens": {0: Dim("texts")}}
    return Graph(TextGraph(clip, unit), {"tokens": tokens}, sizes, ("embeddings",), checks)


def tokenizer_of(clip: VisionLanguageBackbone) -> ClipTokenizer | None:
    """Finds the tokenizer of a CLIP with CLIP's byte pairs. Returns None for a CLIP with another tokenizer."""
    tokenizer = getattr(clip, "tokenizer", None)
    return tokenizer if isinstance(tokenizer, ClipTokenizer) else None


def _image_batches(clip: CLIP) -> Iterator[Tensor]:
    """Yields images of noise: of the grid of the table of positions, wide, tall, and of a single cell."""
    side = clip.image_size // clip.patch_size
    generator = torch.Generator().manual_seed(0)
    for count, rows, columns in (
        (1, side, side),
        (3, 2, 9),
        (2, side + 3, side // 2 + 1),
        (1, 1, 1),
    ):
        size = (count, 3, rows * clip.patch_size, columns * clip.patch_size)
        yield torch.randn(size, generator=generator)


def _metadata(clip: CLIP, files: dict[str, Any]) -> dict[str, Any]:
    """Metadata for the use of the files without this project; `files` is what `export_graph` says of each."""
    return {
        "clip": clip.name,
        "tower": type(clip.visual).__name__,
        "mean": list(clip.mean),
        "std": list(clip.std),
        "patch_size": clip.patch_size,
        "context_length": clip.context_length,
        "embed_dim": clip.embed_dim,
        "logit_scale": clip.logit_scale.exp().item(),
        "logit_bias": None if clip.logit_bias is None else clip.logit_bias.item(),
        "class_residual": clip.visual.class_residual,
        **clip.visual.dense_feature.entries(),
        "files": files,
        "provenance": provenance(weights_hash=clip.weights_hash()),
    }
